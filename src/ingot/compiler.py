"""From a model to an artifact: load, optimize, lower, write."""

from __future__ import annotations

import gzip
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ingot
from ingot.calibration import BUILT_IN, CONTEXT, FEW, TOKENS, Files, calibration_chunks, described, files_of
from ingot.errors import ArtifactError, IngotError, PassError
from ingot.fidelity import Fidelity, reference
from ingot.ir.copy import copy_module
from ingot.ir.dims import Expr
from ingot.ir.module import Module
from ingot.ir.stand_in import stand_in
from ingot.ir.text import print_module
from ingot.ir.value import Value
from ingot.passes.base import Context, Pass
from ingot.passes.cache.float_kv_cache import FloatKvCache
from ingot.passes.contracts.contract import Check
from ingot.passes.journal import Journal
from ingot.passes.lora.merge_lora import MergeLora
from ingot.passes.pipeline import Receipt, check_order, parse_pipeline, run_pipeline
from ingot.passes.recipes import recipe as recipe_text
from ingot.runtime.artifact import ArtifactWriter
from ingot.runtime.bench import peak_rss
from ingot.runtime.manifest import Manifest, Port
from ingot.runtime.prefill import prefill_weights

if TYPE_CHECKING:
    from ingot.runtime.evaluate import Logits

Step = Callable[[int, int, str], None]

REPRO = "ingot-repro"
"""Where a broken contract is written down unless told otherwise."""

PREFILL_FROM = 4
"""Fewest rows (sequences times tokens) at which the int8 graph beats the 4-bit one."""

COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "chat_template.jinja", "added_tokens.json", "preprocessor_config.json")
"""Files of a checkpoint that an artifact carries along."""


def load(model: str | Path, *, dtype: str = "f32", weights: bool = True) -> Module:
    """The traced module of a checkpoint directory, a .gguf file, an .ir file or `package.module:callable`.

    dtype: floating type of the graph. weights: False imports the configuration alone. Raises CheckpointError for a
    checkpoint that is damaged or not understood, UnsupportedOp for an operator without an import rule.
    """
    from ingot.frontend.load import load as frontend_load

    return frontend_load(model, dtype=dtype, weights=weights)


def optimize(module: Module, passes: str | list[Pass], *, check: bool = False, repro: str | Path | None = REPRO,
             progress: Step | None = None) -> list[Receipt]:
    """Run a pipeline (text or passes) over a module in place; one receipt per pass.

    check: check after every pass that it kept its contract; weights without numbers get random ones. repro: the directory
    below which a broken contract is written down, None for nowhere. Raises PassError for an unknown pass or option, an
    impossible order, or a pass that matched nothing, ContractError for a broken contract.
    """
    pipeline = parse_pipeline(passes) if isinstance(passes, str) else passes
    if check:
        stand_in(module)
    return run_pipeline(module, pipeline, Context(progress=progress), check=_check(check, repro))


def with_adapters(pipeline: list[Pass], adapter: str | Path | Sequence[str | Path]) -> list[Pass]:
    """A pipeline that first merges the adapters in one or several directories (`merge-lora`); itself when there are none.

    Raises PassError for a path that pipeline text cannot carry.
    """
    paths = [adapter] if isinstance(adapter, str | Path) else adapter
    return [MergeLora(tuple(map(str, paths))), *pipeline] if paths else pipeline


def _check(check: bool, repro: str | Path | None) -> Check | None:
    return Check(repro=Path(repro) if repro is not None else None) if check else None


def calibration(model: str | Path | None, module: Module, *, text: Files | None, tokens: int = TOKENS,
                context: int = CONTEXT) -> list[np.ndarray]:
    """Calibration batches for a module and what it was loaded from, if anything; see `calibration_chunks`."""
    directory = checkpoint_directory(Path(model).expanduser()) if model is not None else None
    return calibration_chunks(directory, text=text, tokens=tokens, context=min(context, int(module.meta.get("context", context))),
                              vocab=int(module.meta.get("vocab", 0)))


@dataclass(frozen=True)
class Compiled:
    """What `compile` made. seconds: of the whole; peak_bytes: resident memory of the process at its highest.

    evaluation: how far it is from the model before the lossy passes, where that was measured: perplexity, KL divergence and
    top-1 agreement by domain under `results`, what was read under `text` and `tokens`.
    """

    path: Path
    manifest: Manifest
    receipts: list[Receipt]
    seconds: float
    peak_bytes: int
    evaluation: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": sum(self.manifest.files.values()), "seconds": self.seconds,
                "peak_bytes": self.peak_bytes, "pipeline": self.manifest.pipeline,
                "receipts": [r.to_json() for r in self.receipts], "evaluation": self.evaluation}


def compile(model: str | Path, out: str | Path, *, target: str = "ort", recipe: str | None = None, passes: str | None = None,
            adapter: str | Path | Sequence[str | Path] = (), calib: Files | None = None, calib_tokens: int = TOKENS,
            calib_context: int = CONTEXT, evaluation: Files | bool = True, force: bool = False, dump: str | Path | None = None,
            opset_only: bool = False, dtype: str | None = None, archs: Sequence[str] = (), check: bool = False,
            repro: str | Path | None = REPRO, progress: Step | None = None) -> Compiled:
    """Compile a model into an artifact directory.

    target: ort (ONNX Runtime on the CPU) or triton (kernels for a GPU). recipe: a named pipeline (fp32 when neither it nor
    `passes` is given). dtype: floating type of the graph; f32 for ort and bf16 for triton when not given. adapter: see
    `with_adapters`. calib: files of text (.txt, .jsonl) or token chunks (.npz) for passes that calibrate (a small sample that
    comes with ingot, when not given), calib_tokens: how many of their tokens, in sequences of calib_context. evaluation: files
    of text to measure on what lossy passes cost; True for a text that comes with ingot, False for none. dump: a directory that
    also gets the text of every stage. opset_only: standard ONNX operators alone. check, repro: see `optimize`. A killed or
    failing run leaves an existing artifact as it was, and beside it the codes of weights that calibration has finished: the
    same call goes on from there, and makes the same artifact.
    Raises IngotError; see `load` and `optimize`.
    """
    if recipe is not None and passes is not None:
        raise IngotError("give a recipe or a pipeline, not both")
    if target not in ("ort", "triton"):
        raise IngotError(f"unknown target {target}", hint="targets: ort, triton")
    if archs:
        if target != "triton":
            raise IngotError("architectures are compiled for with --target triton alone")
        from ingot.backends.triton.aot import capability

        for arch in archs:
            capability(arch)
    pipeline = with_adapters(parse_pipeline(passes), adapter) if passes is not None else None
    check_order(pipeline or with_adapters(parse_pipeline(recipe_text(recipe or "fp32")), adapter), Module(), has_calibration=True)
    given = [*files_of(calib), *([] if isinstance(evaluation, bool) else files_of(evaluation))]
    if missing := [file for file in given if not file.is_file()]:
        raise IngotError("there is no such file", where=str(missing[0]))
    start = time.perf_counter()
    with ArtifactWriter(out, force=force) as writer:
        step = progress or (lambda done, total, what: None)
        step(0, 1, "trace")
        module = load(model, dtype=dtype or ("bf16" if target == "triton" else "f32"))
        kind = str(module.meta.get("kind", "other"))
        if pipeline is None:
            pipeline = with_adapters(parse_pipeline(recipe_text(recipe or "fp32", kind=kind, fitted=calib is not None)), adapter)
        journal = Journal(writer.target.with_name(f".{writer.target.name}.ingot-journal"), maker=f"ingot {ingot.__version__}")
        context = Context(progress=progress, journal=journal, source=described(calib))
        needed = any("calibration" in p.requires() for p in pipeline)
        fits = any("calibration" in p.requires() and p.contract != "cache" for p in pipeline)
        if calib is not None and not (needed or check):
            warnings.warn("no pass of this pipeline reads calibration text", stacklevel=2)
        if needed or check:
            try:
                context.calibration = calibration(model, module, text=calib, context=calib_context,
                                                  tokens=calib_tokens if fits or calib is not None else FEW)
            except PassError:
                if needed or calib is not None:
                    raise
        if calib is None and fits:
            tokens = sum(ids.size for ids in context.calibration)
            warnings.warn(f"weights are fitted to {tokens:,} tokens of {BUILT_IN}: give text of the kind that the model is for "
                          "with --calib", stacklevel=2)
        facts = check_order(pipeline, module, has_calibration=context.calibration is not None)
        if kind == "decoder" and "cached" in facts and "take" not in facts:
            raise PassError("insert-kv-cache alone makes no decoder that can run: it computes logits at every position",
                            hint="put take-logits before insert-kv-cache")
        fidelity = None
        if evaluation is not False and target == "ort":
            fidelity = Fidelity(module, pipeline, directory=checkpoint_directory(Path(model).expanduser()),
                                text=None if evaluation is True else evaluation)
            fidelity.before(0, module)
        stages = _Stages(writer, Path(dump) if dump is not None else None)
        stages.add("import", module)
        total = len(pipeline) + 1

        def on_stage(index: int, p: Pass, module: Module, receipt: Receipt) -> None:
            stages.add(p.name, module)
            if fidelity is not None:
                fidelity.before(index + 1, module)
            step(index + 1, total, p.name)

        receipts = run_pipeline(module, pipeline, context, on_stage=on_stage, check=_check(check, repro))
        writer.path("receipts.json").write_text(json.dumps([r.to_json() for r in receipts], indent=1) + "\n", encoding="utf-8")
        _copy_companions(model, writer)
        manifest = _manifest(module, recipe, pipeline, stages.names, str(model))
        if target == "triton":
            from ingot.triton_target import FILES
            from ingot.triton_target import write as write_triton

            write_triton(module, writer.root, archs=archs, progress=progress)
            manifest = writer.finish(replace(manifest, target="triton", **FILES))  # type: ignore[arg-type]
            journal.remove()
            return Compiled(Path(out), manifest, receipts, time.perf_counter() - start, peak_rss())
        from ingot.backends.onnx.writer import write

        names = [output_name(module, i) for i in range(len(module.main.returns))]
        written = write(module, writer.root, opset_only=opset_only, progress=progress, output_names=names,
                        prefill=_for_prefill(module) if kind == "decoder" else None, compact=True)
        for name, size in written.decoded.items():
            warnings.warn(f"{name} is a format for storage here: no kernel multiplies it, so its weights are decoded to floats "
                          f"when the artifact is loaded, {size / 1e6:,.1f} MB in memory", stacklevel=2)
        manifest = replace(manifest, graph_weights=written.graph_weights)
        if written.prefill is not None:
            manifest = replace(manifest, prefill_graph=written.prefill.name, prefill_from=PREFILL_FROM,
                               prefill_weights=written.prefill_weights, prefill_steps=written.cache_steps)
        measured = fidelity.measured(manifest, writer.root, progress=progress) if fidelity is not None else None
        if measured is None and not isinstance(evaluation, bool):
            warnings.warn("nothing was measured: only decoders with a KV cache are", stacklevel=2)
        manifest = writer.finish(manifest)
        journal.remove()
    return Compiled(Path(out), manifest, receipts, time.perf_counter() - start, peak_rss(), measured)


def _for_prefill(module: Module) -> Module:
    """The module as the graph for prompts is made from it: caches hold floats."""
    twin = copy_module(module)
    FloatKvCache().run(twin, Context())
    return twin


class _Stages:
    """Writes the text of every stage into the artifact, and into a dump directory on request."""

    def __init__(self, writer: ArtifactWriter, dump: Path | None) -> None:
        self.writer = writer
        self.dump = dump
        self.names: list[str] = []

    def add(self, name: str, module: Module) -> None:
        stage = f"stages/{len(self.names):02d}-{name}.ir.gz"
        text = print_module(module)
        self.writer.path(stage).write_bytes(gzip.compress(text.encode(), mtime=0))
        if self.dump is not None:
            try:
                self.dump.mkdir(parents=True, exist_ok=True)
                (self.dump / Path(stage).stem).write_text(text, encoding="utf-8")
            except OSError as error:
                raise ArtifactError(f"cannot write the dump: {error.strerror}", where=str(self.dump)) from error
        self.names.append(stage)


def _copy_companions(model: str | Path, writer: ArtifactWriter) -> None:
    folder = checkpoint_directory(Path(model).expanduser())
    for name in COMPANIONS:
        if folder is not None and (folder / name).is_file():
            shutil.copyfile(folder / name, writer.path(name))


def checkpoint_directory(path: Path) -> Path | None:
    """The Hugging Face directory of a model: itself, or what a .gguf file is converted to; None for what has none."""
    if path.suffix == ".gguf" and path.is_file():
        from ingot.frontend.gguf import converted

        return converted(path)
    return path if path.is_dir() else None


def _manifest(module: Module, recipe: str | None, pipeline: list[Pass], stages: list[str], source: str) -> Manifest:
    from ingot.backends.onnx.border import port as crossing

    func = module.main
    caches = {p.hint: i for i, p in func.reuse.items()}
    roles = {"ids": "ids", "pos": "positions", "take": "take", "adapter": "adapter"}
    kind = str(module.meta.get("kind", "other"))
    decoding = kind == "decoder" and bool(caches)

    def port(name: str, value: Value, role: str, aliases: str | None = None) -> Port:
        type = crossing(value.type)
        return Port(name=name, dtype=type.dtype.name, role=role, aliases=aliases,
                    dims=tuple(str(d) if isinstance(d, Expr) else d for d in type.dims))

    inputs = [port(p.hint or "", p, "cache" if p.hint in caches else roles.get(p.hint or "", "other")) for p in func.params]
    outputs = []
    for i, value in enumerate(func.returns):
        source_param = func.reuse.get(i)
        if source_param is not None:
            outputs.append(port(f"{source_param.hint}_out", value, "cache", source_param.hint))
        else:
            outputs.append(port(output_name(module, i), value, "logits" if i == 0 and decoding else "other"))
    return Manifest(
        target="ort", kind=kind if decoding or kind != "decoder" else "other", inputs=tuple(inputs), outputs=tuple(outputs),
        version=ingot.__version__, recipe=recipe, pipeline=",".join(map(str, pipeline)), source=Path(source).name,
        context=int(module.meta.get("context", 0)), vocab=int(module.meta.get("vocab", 0)),
        adapters=tuple(str(module.meta.get("adapters", "")).split()), stages=tuple(stages))


def output_name(module: Module, index: int) -> str:
    """The name of a result of the main func at the graph's border: its hint, made unique."""
    func = module.main
    if index in func.reuse:
        return f"{func.reuse[index].hint}_out"
    name = func.returns[index].hint or f"out{index}"
    taken = [v.hint for i, v in enumerate(func.returns) if i < index and i not in func.reuse]
    return f"{name}_{index}" if name in taken or name in {p.hint for p in func.params} else name


def reference_logits(model: str | Path) -> Logits:
    """The logits of a model through the torch executor, float32 without a cache."""
    return reference(load(model))


def export(artifact: str | Path, out: str | Path, *, format: str, force: bool = False) -> None:
    """Copy the graph of an artifact in a format other tools read: `onnx` gives model.onnx with its weights and tokenizer.

    Raises ArtifactError when the artifact is not whole or the output exists.
    """
    from ingot.exporting import new_directory

    manifest = Manifest.load(artifact)
    if format != "onnx":
        raise IngotError(f"unknown format {format}", hint="formats: onnx; for a checkpoint see export_checkpoint")
    with new_directory(out, force=force) as folder:
        for name in (manifest.graph, manifest.weights, *COMPANIONS):
            if (Path(artifact) / name).is_file():
                shutil.copyfile(Path(artifact) / name, folder / name)
        with prefill_weights(manifest.graph_weights, Path(artifact) / manifest.weights) as made:
            if made is not None:
                shutil.copytree(made, folder, dirs_exist_ok=True)
