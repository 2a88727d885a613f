"""Checked contracts: right passes keep theirs, each kind of planted mistake is found and named, and repros show it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from ingot.bisection import replay
from ingot.errors import ContractError, IngotError, PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.passes.base import PASSES, Context, Pass
from ingot.passes.cache.insert_kv_cache import InsertKvCache
from ingot.passes.cleanup.canonicalize import Canonicalize
from ingot.passes.contracts.contract import Check
from ingot.passes.contracts.repro import read_repro
from ingot.passes.pipeline import Receipt, parse_pipeline, run_pass, run_pipeline
from ingot.passes.quantization.quantize import Quantize
from ingot.passes.recipes import RECIPES, recipe
from ingot.testing import assert_contract, graphs
from tests.frontend.examples import imported
from tests.frontend.models import VOCAB
from tests.passes import planted
from tests.passes.planted import stack

WHOLE, SLICES = Check(), Check(small=0)
CALIBRATION = [np.random.default_rng(0).integers(0, 32, (1, 24))]


def checked(p: Pass, module: Module, check: Check = WHOLE) -> Receipt:
    return run_pass(copy_module(module), p, Context(calibration=CALIBRATION), check=check)


# --- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize(("chosen", "check"), [*((name, WHOLE) for name in RECIPES), ("cpu-int4", SLICES)],
                         ids=[*RECIPES, "cpu-int4-slices"])
def test_recipes_keep_their_contracts(name: str, chosen: str, check: Check) -> None:
    module = copy_module(imported(name)[0])
    ctx = Context(calibration=[np.random.default_rng(1).integers(3, VOCAB, (1, 24))])
    pipeline = parse_pipeline(recipe(chosen, kind=str(module.meta.get("kind"))))
    receipts = run_pipeline(module, pipeline, ctx, check=check)
    for receipt in receipts:
        assert ("check" in receipt.details) == receipt.changed
        lossy = receipt.stage.startswith("quantize") or "dtype=int8" in receipt.stage
        assert ("error" in receipt.details) == lossy
        if lossy:
            assert 0 < receipt.details["error"]["relative"] < 0.5
            assert receipt.details["error"]["inputs"] == "calibration"
            assert ("kl" in receipt.details["error"]) == (name != "bert")
    assert any("check" in r.details for r in receipts)


@pytest.mark.parametrize(("p", "how"), [
    (planted.FoldedScale(), "slices"),  # a norm's weight and the linears that read it
    (planted.MovedScale(), "slices"),
    (planted.FirstRowsAngles(), "slices, then whole"),  # right only as a whole: scores know nothing but distances
])
def test_values_may_change_their_meaning_where_it_is_undone(p: Pass, how: str) -> None:
    assert checked(p, stack(3)).details["check"]["how"] == "whole"
    assert checked(p, stack(3), SLICES).details["check"]["how"] == how


@given(module=graphs())
@settings(max_examples=25, deadline=None)
def test_assert_contract_accepts_a_right_pass(module: Module) -> None:
    assert_contract(Canonicalize(), module)


# --- what is wrong ----------------------------------------------------------------------------------------------------

EXACT = [
    (planted.SwappedSub(), "%h1", "model.py:0"),
    (planted.SwappedSub(only=1), "%h2", "model.py:1"),
    (planted.DroppedScale(only=1), "%s1", None),
    (planted.WiderWindow(), "%a0", None),  # nothing to see below four tokens
    (planted.FlippedSequence(only=1), "%m0", None),  # right for a single token
    (planted.FirstRowsPositions(only=1), "%p", None),  # right where all rows stand at the same place
    (planted.FoldedScale(half=True), "%n0", None),
    (planted.FoldedScale(half=True, only=1), "%n1", None),
]


@pytest.mark.parametrize("check", [WHOLE, SLICES], ids=["whole", "slices"])
@pytest.mark.parametrize(("p", "value", "where"), EXACT, ids=lambda x: str(x))
def test_a_mistake_is_found_and_the_value_named(p: Pass, value: str, where: str | None, check: Check) -> None:
    with pytest.raises(ContractError) as caught:
        checked(p, stack(), check)
    error = caught.value
    assert isinstance(error, PassError)
    assert (error.stage, error.value, error.where) == (str(p), value, where)
    assert error.index is not None
    assert error.before != error.after
    text = str(error)
    assert f"{error.before:.10g} became {error.after:.10g}" in text
    assert len(text.splitlines()) <= 6


@pytest.mark.parametrize("check", [WHOLE, SLICES], ids=["whole", "slices"])
@pytest.mark.parametrize(("mistake", "dtype", "said"), [
    ("seen", "float", "5 from 0"),
    ("zero", "float", "4 from 0, then 1 from 4"),
    ("first-row", "float", "3 from 0 / 2 from 0, then 1 from 3 / 1 from 2"),
    ("zero", "int8", "4 from 0, then 1 from 4"),
    ("step", "int8", "rounding explains"),
    ("half-step", "int8", "rounding explains")])
def test_a_mistake_in_a_cache_is_found(mistake: str, dtype: str, said: str, check: Check) -> None:
    with pytest.raises(ContractError, match="%a0") as caught:
        checked(planted.BrokenCache(mistake, dtype), stack(), check)
    assert said in str(caught.value)
    checked(InsertKvCache(dtype=dtype), stack(), check)


@pytest.mark.parametrize("options", [{"format": "int4", "symmetric": False}, {"format": "nf4", "group": 16}, {"format": "int2"},
                                     {"format": "mxfp4"}, {"format": "int8"}], ids=lambda o: o["format"])
def test_rounding_is_told_from_a_mistake(options: dict[str, object]) -> None:
    error = checked(Quantize(**options), stack()).details["error"]  # type: ignore[arg-type]
    assert 0 < error["relative"] < 1.4
    with pytest.raises(ContractError, match=r"%g0.*rounding explains") as caught:
        checked(planted.BrokenQuantize(only=3), stack())
    assert caught.value.value == "%g0"


def test_a_loss_beyond_the_limits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContractError, match="an output is infinite or NaN where it was not"):
        checked(planted.NotFinite(), stack())
    monkeypatch.setattr(Quantize, "limits", {"kl": 1e-6})
    with pytest.raises(ContractError, match=r"kl .*; 1e-06 is the limit"):
        checked(Quantize(), stack())


def test_an_edit_may_compute_something_else_but_numbers() -> None:
    class Edit(planted.SwappedSub):
        contract = "edit"

    class Broken(planted.NotFinite):
        contract = "edit"

    assert checked(Edit(), stack()).details["difference"]["kl"] > 0.01
    with pytest.raises(ContractError, match="infinite or NaN"):
        checked(Broken(), stack())


def test_an_output_keeps_its_type_and_an_exact_pass_its_inputs() -> None:
    class Retyped(planted.NotFinite):
        def run(self, module: Module, ctx: Context) -> int:
            module.main.set_returns([module.main.params[0]])
            return 1

    class Asking(planted.SwappedSub):
        def run(self, module: Module, ctx: Context) -> int:
            module.main.add_param("more", module.main.params[0].type)
            return 1

    with pytest.raises(ContractError, match=r"output 0, %logits: f32\[B, S, 32\], became i64\[B, S\]"):
        checked(Retyped(), stack())
    with pytest.raises(ContractError, match="added the parameter %more"):
        checked(Asking(), stack())


def test_assert_contract_shows_both_texts() -> None:
    module = stack(1)
    with pytest.raises(AssertionError, match=r"%h1.*became") as caught:
        assert_contract(planted.SwappedSub(), module)
    before, after = str(caught.value).split("--- after\n")
    assert "%h1 = sub(%m0, %d0)" in before
    assert "%h1 = sub(%d0, %m0)" in after
    assert "%h1 = sub(%m0, %d0)" in print_module(module)


# --- repros -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines find the planted passes."""
    for name, cls in planted.NAMED.items():
        monkeypatch.setitem(PASSES, name, cls)


def broken(p: Pass, module: Module, folder: Path, check: Callable[..., Check] = Check) -> Path:
    """The directory of the repro that a broken contract leaves."""
    with pytest.raises(ContractError) as caught:
        checked(p, module, check(repro=folder))
    hint = str(caught.value).splitlines()[-1]
    assert hint.startswith("  replay it with: ingot bisect ")
    return Path(hint.removeprefix("  replay it with: ingot bisect ").partition(" --plugin ")[0])


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("p", [planted.SwappedSub(), planted.FoldedScale(half=True), planted.WiderWindow(),
                               planted.FlippedSequence(only=1)], ids=str)
def test_a_repro_replays(p: Pass, tmp_path: Path) -> None:
    folder = broken(p, stack(6), tmp_path / "repros")
    assert folder == tmp_path / "repros" / f"{p.name}-1"
    assert {path.name for path in folder.iterdir()} == {"before.ir", "after.ir", "arrays.npz", "repro.json"}
    assert len(parse_module((folder / "before.ir").read_text()).main.ops) <= 20
    done = replay(folder)
    assert done.wrong
    assert "became" in done.text
    assert str(done).startswith(f"still wrong: {p}")
    assert broken(p, stack(6), tmp_path / "repros").name == f"{p.name}-2"


@pytest.mark.usefixtures("named")
def test_a_repaired_pass_replays_as_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = broken(planted.SwappedSub(), stack(), tmp_path)
    monkeypatch.setattr(planted.SwappedSub, "build", lambda self, op, b: b(type(op)(op.x, op.y)))
    done = replay(folder)
    assert not done.wrong
    assert str(done).startswith("now right")


@pytest.mark.usefixtures("named")
def test_a_cache_replays_on_the_whole_module(tmp_path: Path) -> None:
    folder = broken(planted.BrokenCache("zero"), stack(1), tmp_path)
    repro = read_repro(folder)
    assert repro.replays
    assert replay(folder).wrong
    slice_ = broken(planted.BrokenCache("zero"), stack(4), tmp_path, lambda **given: Check(small=0, budget=0, **given))
    assert not read_repro(slice_).replays  # the pass cannot run on a slice without token ids, but what it made is there
    assert "as recorded" in replay(slice_).text


@pytest.mark.usefixtures("named")
def test_a_damaged_repro_is_an_error(tmp_path: Path) -> None:
    folder = broken(planted.SwappedSub(), stack(), tmp_path)
    record = json.loads((folder / "repro.json").read_text())
    (folder / "repro.json").write_text(json.dumps(record | {"contract": None, "replays": []})[:-1])
    with pytest.raises(IngotError, match="no whole repro"):
        replay(folder)
    (folder / "arrays.npz").unlink()
    (folder / "repro.json").write_text(json.dumps(record))
    with pytest.raises(IngotError, match=r"arrays\.npz: cannot be read"):
        replay(folder)
    with pytest.raises(IngotError, match="cannot be read"):
        replay(tmp_path)


def test_weights_of_any_element_type_survive_a_repro(tmp_path: Path) -> None:
    folder = broken(planted.BrokenQuantize(only=3), stack(), tmp_path)
    repro = read_repro(folder)
    assert {str(c.type.dtype) for c in repro.after.consts.values()} == {"u4", "f32"}
    found = repro.judge(repro.after)
    assert found is not None
    assert "rounding explains" in str(found.difference)
