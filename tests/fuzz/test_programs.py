"""Programs that once went wrong: shrunk findings of benchmarks/random_programs.py, checked again in every way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.random_programs import Block, Mismatch, Record, check_program, run_block
from ingot.ir.module import Builder, Module
from ingot.ir.ops.pointwise import Neg
from ingot.ir.text import parse_module
from ingot.passes.base import Context
from ingot.passes.cleanup.dce import Dce
from ingot.passes.pipeline import parse_pipeline
from ingot.passes.recognition.recognize import Recognize

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.ir"))
torch.set_num_threads(1)
TEXT = """module @m {
  dim S in 1..4
  func @forward(%x: f32[S, 2]) -> (f32[S, 2]) {
    %a = exp(%x) : f32[S, 2]
    %b = tanh(%a) : f32[S, 2]
    return %b
  }
}
"""


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_what_went_wrong_once(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    pipeline = next(line.removeprefix("# run: ") for line in text.split("\n") if line.startswith("# run: "))
    for seed in range(4):
        check_program(parse_module(text), parse_pipeline(pipeline), seed=seed)


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """What went wrong then and goes right by now is counted apart."""
    path, wrong = tmp_path / "r.json", TEXT.replace("f32[S, 2]", "i64[S, 2]")
    first = Record.read(path, 1)
    new = first.add([Block(programs=Counter(graph=50), found={"dce AssertionError": f"# run: dce\n{TEXT}"}),
                     Block(programs=Counter(graph=20), known=Counter({"dce AssertionError": 2}),
                           found={"cse again": f"# run: cse\n{wrong}"})])
    assert list(new) == ["dce AssertionError", "cse again"]
    path.write_text(json.dumps(first.to_json()))
    again = Record.read(path, 1)
    assert (again.blocks, again.total.programs, again.total.known) == (2, Counter(graph=70), Counter({"cse again": 1}))
    assert again.fixed == Counter({"dce AssertionError": 3})
    assert Record.read(path, 2).blocks == 0


def negate(module: Module, ctx: Context) -> int:
    func = module.main
    func.set_returns([Builder(func)(Neg(func.returns[0]))])
    return 1


def negate_twice(module: Module, ctx: Context) -> int:
    return negate(module, ctx) + negate(module, ctx)


def fall_over(module: Module, ctx: Context) -> int:
    raise KeyError("x")


@pytest.mark.parametrize(("run", "kind"), [
    (negate, "dce AssertionError"), (negate_twice, "dce again"), (fall_over, "dce KeyError")])
def test_planted_mistakes_are_seen(run: Callable[[Module, Context], int], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_program(parse_module(TEXT), parse_pipeline("dce"))
    monkeypatch.setattr(Dce, "run", lambda self, module, ctx: run(module, ctx))
    with pytest.raises(Mismatch) as caught:
        check_program(parse_module(TEXT), parse_pipeline("dce"))
    assert caught.value.kind == kind


def test_a_mismatch_is_shrunk_to_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recognize, "run", lambda self, module, ctx: negate(module, ctx))
    seed, block = next((seed, found) for seed in range(20) if (found := run_block(0, seed, "graph", frozenset(), 0.0)).found)
    assert list(block.found) == ["recognize AssertionError"]
    (text,) = block.found.values()
    assert len(text.splitlines()) <= 14
    assert "# run: recognize\n" in text
    again = run_block(0, seed, "graph", frozenset(block.found), 0.0)
    assert not again.found
    assert again.known["recognize AssertionError"] > 0
