"""`ingot bisect`: the guilty pass and value by binary search, in five lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ingot
from ingot.bisection import Bisection, bisect
from ingot.cli import main
from ingot.errors import IngotError, PassError
from ingot.ir.ops.attention import Attention
from ingot.ir.text import print_module
from ingot.passes.base import PASSES
from tests.frontend.examples import imported
from tests.frontend.models import saved, tiny
from tests.passes import planted
from tests.passes.planted import stack

RIGHT = "clean,fuse,take-logits,insert-kv-cache,clean"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines find the planted passes."""
    for name, cls in planted.NAMED.items():
        monkeypatch.setitem(PASSES, name, cls)


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def chunks(folder: Path) -> Path:
    """Token ids to calibrate and compare on."""
    np.savez(folder / "chunks.npz", text=np.random.default_rng(0).integers(0, 32, (1, 24)))
    return folder / "chunks.npz"


def guilty(found: Bisection) -> tuple[str, int, str]:
    assert found.guilty is not None
    return found.guilty.stage, found.guilty.place, found.guilty.value.split(":")[0]


@pytest.mark.parametrize("place", range(6))
def test_the_pass_is_found_wherever_it_stands(place: int) -> None:
    stages = RIGHT.split(",")
    stages.insert(place, "planted-swapped-sub{only=2}")
    found = bisect(stack(4), ",".join(stages))
    assert guilty(found) == ("planted-swapped-sub{only=2}", place + 1, "%h3")
    assert found.runs <= math.ceil(math.log2(6)) + 1
    assert found.guilty is not None
    assert found.guilty.cut_runs <= math.ceil(math.log2(found.guilty.cuts))
    assert found.guilty.where == "model.py:2"
    assert "sub(%m2, %d2)" in found.guilty.op_before
    assert "sub(%d2, %m2)" in found.guilty.op_after


def test_a_pass_that_finds_nothing_is_passed_over() -> None:
    """Behind a mistake there may be nothing left for the passes that follow."""
    found = bisect(stack(4), "clean,planted-swapped-sub{only=2},fuse{mlp},clean")
    assert guilty(found) == ("planted-swapped-sub{only=2}", 2, "%h3")


@pytest.mark.parametrize("metric", ["relative", "max-abs", "kl", "top1"])
def test_metrics(metric: str) -> None:
    pipeline = "clean,planted-wider-window{only=3},clean"
    assert guilty(ingot.bisect(stack(4), pipeline, metric=metric))[1:] == (2, "%a3")
    right = bisect(stack(4), "clean,planted-negated-sub,clean", metric=metric)
    assert right.guilty is None
    assert "nothing goes wrong" in str(right)
    assert bisect(stack(4), pipeline, metric=metric, limit=0.0 if metric == "top1" else 100.0).guilty is None


def test_caches_are_compared_by_a_prefill(tmp_path: Path) -> None:
    assert bisect(stack(2), RIGHT).guilty is None
    found = bisect(stack(2), "clean,take-logits,planted-broken-cache{mistake=seen}", calib=chunks(tmp_path))
    assert guilty(found)[1:] == (3, "%a0")


def test_a_lossy_pass_is_guilty_where_its_loss_passes_the_limit(tmp_path: Path) -> None:
    calib = chunks(tmp_path)
    found = bisect(stack(3), f"{RIGHT},quantize", limit=0.05, calib=calib)
    assert found.guilty is not None
    assert found.guilty.stage == "quantize"
    assert found.guilty.error_before < 1e-9 < 0.05 < found.guilty.error_value
    assert bisect(stack(3), f"{RIGHT},quantize", limit=0.9, calib=calib).guilty is None


def test_a_model_too_large_for_the_interpreter_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingot.bisection.SMALL", 0)
    monkeypatch.setattr(Attention, "reference", lambda *_: pytest.fail("the interpreter ran"))
    module = imported("llama")[0]
    found = bisect(module, "clean,recognize,planted-forgotten-silu,clean,take-logits,insert-kv-cache")
    assert found.guilty is not None
    assert (found.guilty.stage, found.guilty.place) == ("planted-forgotten-silu", 3)
    assert "silu" in found.guilty.op_before
    assert found.guilty.where is not None
    assert "modeling_llama.py" in found.guilty.where
    assert 0 < found.guilty.error_before < 1e-4


def test_five_lines_and_one_record(tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text(print_module(stack(2)))  # weights by name only: random ones do
    args = ("bisect", tmp_path / "m.ir", "--passes", "clean,planted-swapped-sub{only=1},clean")
    lines = run(*args).stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("planted-swapped-sub{only=1}, pass 2 of 3, is the first that goes wrong: relative ")
    assert lines[1].startswith("%h2: f32[B, S, 16] at model.py:1 is the first value in it that does")
    assert lines[4].startswith("3 runs over 3 passes (log2 1.6), ")
    record = json.loads(run(*args, "--json").stdout)
    assert record["guilty"]["value"] == "%h2: f32[B, S, 16]"
    assert record["guilty"]["place"] == 2
    assert record["runs"] == 3


def test_a_checkpoint(tmp_path: Path) -> None:
    model = saved(tiny("llama")[1], tmp_path / "model")
    calib = chunks(tmp_path)
    result = run("bisect", model, "--passes", "clean,recognize,clean,planted-forgotten-silu", "--calib", calib)
    assert result.exit_code == 0, result.output
    assert "planted-forgotten-silu, pass 4 of 4" in result.stdout


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    assert run("bisect", tmp_path).exit_code == 2
    assert run("bisect", tmp_path, "--passes", "clean", "--metric", "feeling").exit_code == 2
    result = run("bisect", tmp_path / "nowhere", "--passes", "clean")
    assert result.exit_code == 1
    assert "no such file" in result.output
    with pytest.raises(IngotError, match="unknown metric"):
        bisect(stack(1), "clean", metric="feeling")
    with pytest.raises(IngotError, match="no passes to search"):
        bisect(stack(1), "")
    with pytest.raises(PassError, match="calibration text"):
        bisect(stack(1), "insert-kv-cache{dtype=int8}")
