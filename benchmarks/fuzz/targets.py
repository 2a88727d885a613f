"""Every reader of data from outside, as one entry of a table: what reads, what it starts from, how inputs are changed.

A new reader needs one function (bytes and an empty folder in; whatever it raises but IngotError is a finding), a
function in seeds.py that gives whole inputs, and its line in TARGETS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.fuzz import mutate, programs, seeds


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader under test."""

    read: Callable[[bytes, Path], object]
    """Feeds an input to the reader. The folder is empty and for this input alone."""
    seeds: Callable[[], list[bytes]]
    """Whole inputs, which the reader takes without an error."""
    mutate: mutate.Mutate | None = None
    """Changes an input knowing its format; half of the changes are made by it, the others by bytes. None: by bytes alone."""
    cost: int = 1
    """How many times slower than a quick reader: it gets so many times fewer runs."""


def _unchanged(text: str) -> None:
    """Text that is a module and verifies must print, and parse back to the same text."""
    from ingot.ir.text import parse_module, print_module
    from ingot.ir.verify import verify

    module = parse_module(text)
    verify(module)
    printed = print_module(module)
    again = print_module(parse_module(printed))
    assert again == printed, f"printed:\n{printed}\nparsed and printed again:\n{again}"


def _ir(data: bytes, folder: Path) -> None:
    _unchanged(data.decode("utf-8", "replace"))


def _optimize(data: bytes, folder: Path) -> None:
    """The pipeline behind `# run:` (clean-up, where there is none) over a module."""
    from ingot.ir.text import parse_module, print_module
    from ingot.ir.verify import verify
    from ingot.passes.pipeline import parse_pipeline, run_pipeline

    text = data.decode("utf-8", "replace")
    named = [line.removeprefix("# run: ") for line in text.split("\n") if line.startswith("# run: ")]
    pipeline = parse_pipeline(named[0] if named else "canonicalize,fold-constants,cse,dce,recognize,fuse,canonicalize")
    module = parse_module(text)
    verify(module)
    run_pipeline(module, pipeline[:8])
    _unchanged(print_module(module))


def _pipeline(data: bytes, folder: Path) -> None:
    from ingot.ir.module import Module
    from ingot.passes.pipeline import check_order, parse_pipeline

    passes = parse_pipeline(data.decode("utf-8", "replace"))
    text = ",".join(map(str, passes))
    assert parse_pipeline(text) == passes, f"{text} is read as {parse_pipeline(text)}"
    check_order(passes, Module())


def _safetensors(data: bytes, folder: Path) -> None:
    from ingot.ir.weights import FileWeight, header

    path = folder / "model.safetensors"
    path.write_bytes(data)
    for key, entry in header(path).items():
        FileWeight(path, key, entry.type).materialize()


def _index(data: bytes, folder: Path) -> None:
    from ingot.frontend.checkpoint import read_checkpoint

    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_bytes(data)
    for name, content in zip(("a.safetensors", "b.safetensors"), seeds.safetensors()):
        (folder / name).write_bytes(content)
    for handle in read_checkpoint(folder).tensors.values():
        handle.materialize()


def _repro_arrays(data: bytes, folder: Path) -> None:
    _use_repro(folder, seeds.repro_records()[0], data)


def _repro_record(data: bytes, folder: Path) -> None:
    _use_repro(folder, data, seeds.repro_arrays()[0])


def _use_repro(folder: Path, record: bytes, arrays: bytes) -> None:
    from ingot.passes.contracts.repro import AFTER, ARRAYS, BEFORE, RECORD, read_repro

    for name, content in {RECORD: record, ARRAYS: arrays, BEFORE: seeds.REPRO.encode(), AFTER: seeds.REPRO.encode()}.items():
        (folder / name).write_bytes(content)
    repro = read_repro(folder)
    repro.judge(repro.after)


def _adapter(data: bytes, folder: Path) -> None:
    _use_adapter(folder, data, seeds.adapter_tensors()[0])


def _adapter_tensors(data: bytes, folder: Path) -> None:
    _use_adapter(folder, seeds.adapter_configurations()[0], data)


def _use_adapter(folder: Path, config: bytes, tensors: bytes) -> None:
    from ingot.passes.lora.adapter import read_adapter

    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    adapter = read_adapter(folder)
    adapter.check_finite()
    adapter.config.targets("model.layers.0.mlp.up_proj")
    for change in adapter.changes.values():
        change.scaling()


def _config(data: bytes, folder: Path) -> None:
    from ingot.frontend.architecture import build, configuration
    from ingot.frontend.checkpoint import read_checkpoint

    (folder / "config.json").write_bytes(data)
    build(configuration(folder, read_checkpoint(folder, weights=False).config))


def _gguf(data: bytes, folder: Path) -> None:
    from ingot.frontend.gguf import converted

    (folder / "model.gguf").write_bytes(data)
    converted(folder / "model.gguf", cache=folder / "cache")


def _tokenizer(data: bytes, folder: Path) -> None:
    _use_tokenizer(folder, {"tokenizer.json": data})


def _tokenizer_config(data: bytes, folder: Path) -> None:
    _use_tokenizer(folder, {"tokenizer_config.json": data})


def _use_tokenizer(folder: Path, changed: dict[str, bytes]) -> None:
    from ingot.runtime.tokenizer import Tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(changed[name] if name in changed else (_artifact() / name).read_bytes())
    tokenizer = Tokenizer.open(folder)
    tokenizer.decode(tokenizer.encode("abba abc. <s> 東"))
    if tokenizer.chat_template is not None:
        tokenizer.encode_chat([{"role": "user", "content": "abc"}])


def _npz(data: bytes, folder: Path) -> None:
    from ingot.calibration import calibration_chunks

    (folder / "chunks.npz").write_bytes(data)
    calibration_chunks(None, text=folder / "chunks.npz", context=4)


def _text(data: bytes, folder: Path) -> None:
    from ingot.runtime.evaluate import load_chunks
    from ingot.runtime.tokenizer import Tokenizer

    (folder / "text.txt").write_bytes(data)
    load_chunks(folder / "text.txt", tokenizer=Tokenizer.open(_artifact()), context=4)


def _json_lines(data: bytes, folder: Path) -> None:
    from ingot.runtime.evaluate import load_chunks
    from ingot.runtime.tokenizer import Tokenizer

    (folder / "text.jsonl").write_bytes(data)
    load_chunks(folder / "text.jsonl", tokenizer=Tokenizer.open(_artifact()), context=4, chunks=8)


def _evaluation(data: bytes, folder: Path) -> None:
    from ingot.fidelity import FILE, read_evaluation
    from ingot.report import evaluation_text

    (folder / FILE).write_bytes(data)
    evaluation_text(read_evaluation(folder) or {})


@lru_cache(maxsize=1)
def _artifact() -> Path:
    """One whole artifact, made once per process."""
    return seeds.artifact(Path(mkdtemp(prefix="ingot-fuzz-artifact-")))


def _seed(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_artifact() / name).read_bytes()]


def _damaged(folder: Path, name: str, data: bytes) -> Path:
    """The artifact with other contents in one of its files, of which the manifest's sizes speak, as it is for a user."""
    out = folder / "artifact"
    shutil.copytree(_artifact(), out, copy_function=os.link)
    (out / name).unlink()
    (out / name).write_bytes(data)
    return out


def _dumped(folder: Path, name: str, data: bytes) -> Path:
    """As _damaged, with no more files than reading dumps takes."""
    (folder / name).parent.mkdir(exist_ok=True)
    os.link(_artifact() / "ingot.json", folder / "ingot.json")
    (folder / name).write_bytes(data)
    return folder


def _manifest(data: bytes, folder: Path) -> None:
    """Opening, running and reading the dumps of an artifact whose manifest says something else."""
    from ingot import dumps
    from ingot.errors import IngotError
    from ingot.runtime.session import Session

    out = _damaged(folder, "ingot.json", data)
    with contextlib.suppress(IngotError):
        dumps.dump_text(out)
    with contextlib.suppress(IngotError):
        dumps.dump_text(out, after="fuse")
    with contextlib.suppress(IngotError):
        dumps.read_receipts(out)
    session = Session.open(out, threads=1)
    if session.manifest.kind == "decoder":
        session.prefill([[1, 2, 3, 4, 5, 6], [1]])
        session.step([1, 2])


def _receipts(data: bytes, folder: Path) -> None:
    from ingot import dumps
    from ingot.report import receipt_table

    receipt_table(dumps.read_receipts(_dumped(folder, "receipts.json", data)))


def _stage(data: bytes, folder: Path) -> None:
    from ingot import dumps

    name = "stages/00-import.ir.gz"
    dumps.statistics(_dumped(folder, name, data), after="import")


def _generation_config(data: bytes, folder: Path) -> None:
    import numpy as np

    from ingot.runtime.generate import GenerateOptions
    from ingot.runtime.sampling import Sampler

    (folder / "generation_config.json").write_bytes(data)
    options = GenerateOptions.for_artifact(folder, max_new_tokens=3)
    sampler = Sampler(options.sampling, rows=1)
    sampler.observe(0, [1, 2])
    sampler.choose(np.linspace(-1, 1, 8, dtype=np.float32)[None])


def _programs() -> mutate.Mutate:
    return programs.program([p.decode() for p in seeds.programs()])


def _pipelines() -> mutate.Mutate:
    return mutate.text([p.decode() for p in seeds.pipelines()])


@lru_cache(maxsize=1)
def targets() -> dict[str, Target]:
    """Every reader by name."""
    module = _programs()
    return {
        "ir": Target(read=_ir, seeds=seeds.programs, mutate=module),
        "optimize": Target(read=_optimize, seeds=seeds.programs, mutate=module, cost=2),
        "pipeline": Target(read=_pipeline, seeds=seeds.pipelines, mutate=_pipelines()),
        "safetensors": Target(read=_safetensors, seeds=seeds.safetensors, mutate=mutate.safetensors),
        "index": Target(read=_index, seeds=seeds.indices, mutate=mutate.json_value),
        "adapter": Target(read=_adapter, seeds=seeds.adapter_configurations, mutate=mutate.json_value),
        "adapter-tensors": Target(read=_adapter_tensors, seeds=seeds.adapter_tensors, mutate=mutate.safetensors),
        "config": Target(read=_config, seeds=seeds.configurations, mutate=mutate.json_value, cost=10),
        "gguf": Target(read=_gguf, seeds=seeds.gguf_files, mutate=mutate.binary, cost=20),
        "tokenizer": Target(read=_tokenizer, seeds=_seed("tokenizer.json"), mutate=mutate.json_value),
        "tokenizer-config": Target(read=_tokenizer_config, seeds=_seed("tokenizer_config.json"), mutate=mutate.json_value,
                                   cost=2),
        "generation-config": Target(read=_generation_config, seeds=_seed("generation_config.json"), mutate=mutate.json_value),
        "npz": Target(read=_npz, seeds=seeds.chunk_files, mutate=mutate.archive(mutate.npy)),
        "repro-arrays": Target(read=_repro_arrays, seeds=seeds.repro_arrays, mutate=mutate.archive(mutate.npy)),
        "repro-record": Target(read=_repro_record, seeds=seeds.repro_records, mutate=mutate.json_value),
        "text": Target(read=_text, seeds=seeds.texts),
        "json-lines": Target(read=_json_lines, seeds=seeds.json_lines),
        "evaluation": Target(read=_evaluation, seeds=seeds.evaluations, mutate=mutate.json_value),
        "manifest": Target(read=_manifest, seeds=_seed("ingot.json"), mutate=mutate.json_value, cost=10),
        "receipts": Target(read=_receipts, seeds=_seed("receipts.json"), mutate=mutate.json_value),
        "stage": Target(read=_stage, seeds=seeds.stages, mutate=mutate.compressed(module), cost=2),
    }
