"""From a model and passes to a checkpoint directory that transformers, vLLM and others load."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import ArtifactError, IngotError
from ingot.export_plan import ExportPlan
from ingot.ir.module import Module
from ingot.ir.types import DTYPES
from ingot.parameters import originals

if TYPE_CHECKING:
    from ingot.passes.pipeline import Receipt

COMPANIONS = ("generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja",
              "chat_template.json", "preprocessor_config.json", "processor_config.json")
"""Files of a checkpoint besides its configuration and weights."""

LIMIT = 1e-3
"""Greatest difference of an output between the module and the checkpoint read back, as a part of its greatest element: other
orders of the same float32 sums."""


@dataclass(frozen=True)
class Exported:
    """What `export_checkpoint` wrote. bytes: of the tensors. quantised: how many weights are codes. difference: of the outputs
    between the optimised module and the checkpoint read back, as a part of the greatest.
    """

    path: Path
    bytes: int
    quantised: int
    difference: float
    receipts: list[Receipt]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes, "quantised": self.quantised, "difference": self.difference,
                "receipts": [r.to_json() for r in self.receipts]}


def export_checkpoint(model: str | Path, out: str | Path, *, passes: str = "", adapter: str | Path | Sequence[str | Path] = (),
                      layout: str = "compressed-tensors", calib: str | Path | None = None, dtype: str | None = None,
                      force: bool = False, progress: Callable[[int, int, str], None] | None = None) -> Exported:
    """Run passes over a model and write the result as a Hugging Face checkpoint directory.

    model: a checkpoint directory or .gguf file. adapter: LoRA adapters to merge first. layout: how quantised weights are
    stored: compressed-tensors, gptq, gptq-v2 or awq. calib: text for passes that calibrate. dtype: element type of the floats
    (f32, bf16, f16); those of the checkpoint when not given. Tensors that no pass touched are copied as they are. Before the
    directory takes its name it is read back, and must compute what the module computes.

    Raises ArtifactError where the result is not what config.json can describe, the layout does not hold it, or the output
    exists; otherwise as `compile`.
    """
    from ingot.backends.hf import LAYOUTS
    from ingot.backends.hf.writer import write_tensors
    from ingot.compiler import calibration, checkpoint_directory, load, with_adapters
    from ingot.passes.base import Context
    from ingot.passes.pipeline import check_order, parse_pipeline, run_pipeline

    if layout not in LAYOUTS:
        raise IngotError(f"unknown layout {layout}", hint=f"layouts: {', '.join(LAYOUTS)}")
    pipeline = with_adapters(parse_pipeline(passes) if passes else [], adapter)
    check_order(pipeline, Module(), has_calibration=True)
    source = checkpoint_directory(Path(model).expanduser())
    if source is None or not (source / "config.json").is_file():
        raise ArtifactError("only a model with a configuration can become a checkpoint", where=str(model),
                            hint="give a checkpoint directory or a .gguf file")
    step = progress or (lambda done, total, what: None)
    with new_directory(out, force=force) as folder:
        step(0, 1, "trace")
        module = load(source)
        known, ports = originals(module), _ports(module)
        needed = any("calibration" in p.requires() for p in pipeline)
        context = Context(calibration=calibration(source, module, text=calib) if needed else None, progress=progress)
        receipts = run_pipeline(module, pipeline, context)
        if _ports(module) != ports:
            raise ArtifactError("the passes changed the inputs or outputs of the model, which config.json does not describe",
                                hint="leave out insert-kv-cache and take-logits: they are for compiled artifacts")
        plan = ExportPlan(module, source, known, LAYOUTS[layout], DTYPES[dtype] if dtype else None)
        size = write_tensors(folder, plan.entries(), progress=progress)
        (folder / "config.json").write_text(json.dumps(plan.config(), indent=2) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        step(0, 1, "read back")
        difference = _difference(module, folder)
        if not difference <= LIMIT:
            raise ArtifactError(f"the checkpoint computes something else than the module: outputs differ by {difference:.2g} of "
                                "the greatest", hint="a pass changed what config.json describes; leave it out")
    return Exported(Path(out), size, len(plan.codes), difference, receipts)


@contextmanager
def new_directory(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A directory beside `out` that takes its name in the end, and is removed when that fails. What stood there before is kept
    until then.

    Raises ArtifactError when `out` exists, unless `force`, and when it cannot be written.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise ArtifactError("the output exists already", where=str(folder), hint="replace it with --force, or choose another")
    aside, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"cannot write: {error.strerror or error}", where=str(folder),
                            hint="choose another output") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _ports(module: Module) -> tuple[Any, ...]:
    return tuple((p.hint, p.type) for p in module.main.params), tuple(v.type for v in module.main.returns)


def _difference(module: Module, folder: Path) -> float:
    """The greatest difference of an output on a few random inputs, as a part of the greatest element."""
    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.passes.contracts.samples import inputs_for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = load(folder)
    inputs = inputs_for(module, np.random.default_rng(0), {name: min(most, 8 if name == "S" else 1)
                                                           for name, (_, most) in module.dims.items()})
    worst = 0.0
    for before, after in zip(*(Executor(m).run(inputs) for m in (module, again)), strict=True):
        size = float(before.abs().max()) or 1.0
        worst = float(np.maximum(worst, float((before - after).abs().max()) / size))  # keeps NaN, which max() does not
    return worst
