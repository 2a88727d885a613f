"""Inputs that once brought a reader down, read again; and the harness that finds them."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from benchmarks.fuzz import mutate, programs
from benchmarks.fuzz.targets import targets
from benchmarks.fuzz.trial import trial
from ingot import dumps
from ingot.errors import IngotError
from ingot.ir.text import parse_module

FINDINGS = sorted(path for path in (Path(__file__).parent / "findings").glob("*/*"))


@pytest.mark.parametrize("path", FINDINGS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_was_found_is_refused_with_one_clear_error(path: Path) -> None:
    failure = trial(targets()[path.parent.name].read, path.read_bytes())
    assert failure is None, f"{failure.error} at {failure.where}\n{failure.trace}"


@pytest.mark.parametrize("name", [
    "safetensors", "index", "adapter", "adapter-tensors", "config", "gguf", "tokenizer", "tokenizer-config", "generation-config",
    "npz", "evaluation", "repro-arrays", "repro-record", "manifest", "receipts", "stage", "pipeline"])
def test_whole_files_are_taken(name: str, tmp_path: Path) -> None:
    """What every mutation starts from must get through, or nothing behind the first check is tried."""
    target = targets()[name]
    for index, data in enumerate(target.seeds()[:5]):
        folder = tmp_path / str(index)
        folder.mkdir()
        try:
            target.read(data, folder)
        except IngotError as error:
            assert "calibration" in str(error)  # noqa: PT017  (pipelines that need it)


def test_a_compressed_dump_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.ir.gz").write_bytes(gzip.compress(bytes(1 << 16)))
    monkeypatch.setattr(dumps, "LARGEST", 1 << 12)
    with pytest.raises(IngotError, match="longer than 4,096 bytes"):
        dumps.read_text(tmp_path / "long.ir.gz")


def test_the_harness_sees_other_errors_slowness_and_hunger() -> None:
    def slow(data: bytes, folder: Path) -> None:
        while True:
            pass

    def hungry(data: bytes, folder: Path) -> None:
        bytearray(1 << 40)

    def wrong(data: bytes, folder: Path) -> None:
        parse_module("module @m {}")
        raise KeyError("x")

    def refused(data: bytes, folder: Path) -> None:
        raise IngotError("no")

    found = [trial(read, b"") for read in (hungry, wrong, refused)]
    assert [f and f.error for f in found] == ["MemoryError: ", "KeyError: 'x'", None]
    slow_one = trial(slow, b"", seconds=0.05)
    assert slow_one is not None
    assert slow_one.error.startswith("TooSlow")


def test_types_are_put_right_after_a_mutation() -> None:
    text = ("module @m {\n  dim S in 1..4\n  func @forward(%x: f32[S, 6]) -> (f32[S, 6]) {\n"
            "    %a = neg(%x) : f32[S, 6]\n    %b = exp(%a) : f32[S, 6]\n    return %b\n  }\n}\n")
    made = programs.repaired(text.replace("%x: f32[S, 6]", "%x: bf16[S, 2]"))
    assert [str(v.type) for v in parse_module(made).main.returns] == ["bf16[S, 2]"]


def test_mutations_keep_enough_modules_whole() -> None:
    rng = random.Random(0)
    target = targets()["ir"]
    assert target.mutate is not None
    whole = 0
    for _ in range(120):
        data = target.mutate(rng.choice(target.seeds()), rng)
        try:
            parse_module(data.decode("utf-8", "replace"))
            whole += 1
        except IngotError:
            pass
    assert whole >= 24


@pytest.mark.parametrize("change", [mutate.json_value, mutate.safetensors, mutate.archive(mutate.npy), mutate.binary,
                                    mutate.compressed(mutate.text(["a b"])), mutate.text(["a b"])])
def test_mutations_take_anything_and_repeat(change: mutate.Mutate) -> None:
    for data in (b"", b"{}", b"\xff" * 40, *targets()["npz"].seeds(), *targets()["safetensors"].seeds()):
        for seed in range(10):
            assert change(data, random.Random(seed)) == change(data, random.Random(seed))
