"""sparsify: which elements go, what the others become, and what it costs by method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.passes.base import Context
from ingot.passes.contracts.contract import Check
from ingot.passes.journal import Journal
from ingot.passes.pipeline import Receipt, check_order, parse_pipeline, run_pipeline
from ingot.passes.sparsity import sparsify
from ingot.passes.sparsity.masks import Pattern, magnitude, sparsegpt, wanda
from ingot.testing import Decoder
from tests.passes.test_journal import Killed, killing, numbers
from tests.passes.test_rotate import LLAMA

CALIBRATION = [np.random.default_rng(s).integers(0, 24, (4, 16)) for s in range(8)]
HALF, TWO_OF_FOUR = Pattern(0.5), Pattern(0.5, 4)


@pytest.fixture(scope="module")
def model() -> Module:
    return Decoder(**LLAMA | {"width": 32, "head_dim": 6, "tied": False}).module()  # type: ignore[arg-type]


def thinned(model: Module, pipeline: str, folder: Path | None = None) -> tuple[Module, Receipt]:
    after = copy_module(model)
    context = Context(calibration=CALIBRATION, journal=Journal(folder))
    return after, run_pipeline(after, parse_pipeline(pipeline), context, check=Check())[-1]


def second(rng: np.random.Generator, k: int) -> np.ndarray:
    """Moments of correlated inputs of unlike sizes."""
    x = rng.normal(size=(500, k // 2)) @ rng.normal(size=(k // 2, k)) * np.exp(rng.normal(size=k))
    x += 0.1 * rng.normal(size=x.shape)
    return np.asarray(x.T @ x / 500, np.float32)


def lost(w: np.ndarray, new: np.ndarray, moments: np.ndarray) -> float:
    return float(np.vdot((w - new) @ moments, w - new))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_patterns() -> None:
    scores = np.array([[4.0, 3, 2, 1, 0, 9], [0, 0, 0, 0, 5, 5]])
    assert TWO_OF_FOUR.kept(scores).tolist() == [[True, True, False, False, True, True], [False, False, True, True, True, True]]
    assert HALF.kept(scores).tolist() == [[True, True, False, False, False, True], [False, False, False, True, True, True]]
    assert Pattern(0.25).kept(np.arange(8.0)[None]).sum() == 6


@pytest.mark.parametrize("k", [64, 70, 300])
@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR, Pattern(0.75), Pattern(0.5, 8)])
def test_as_many_go_as_asked_for(pattern: Pattern, k: int) -> None:
    rng = np.random.default_rng(k)
    w, moments = rng.normal(size=(24, k)).astype(np.float32), second(rng, k)
    for new in (magnitude(w, pattern), wanda(w, moments, pattern), sparsegpt(w, moments, pattern)):
        zeros = new == 0
        assert np.isfinite(new).all()
        if pattern.span is None:
            assert zeros.mean() == pytest.approx(pattern.ratio, abs=0.5 / k + 1e-6)
        else:
            whole = zeros[:, :k - k % pattern.span].reshape(-1, pattern.span)
            assert (whole.sum(1) == pattern.span // 2).all()


@pytest.mark.parametrize("pattern", [HALF, TWO_OF_FOUR])
def test_each_method_loses_less_than_the_one_before(pattern: Pattern) -> None:
    rng = np.random.default_rng(0)
    w, moments = rng.normal(size=(32, 96)).astype(np.float32), second(rng, 96)
    errors = [lost(w, new, moments) for new in
              (magnitude(w, pattern), wanda(w, moments, pattern), sparsegpt(w, moments, pattern))]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_independent_inputs_leave_nothing_to_make_good() -> None:
    """SparseGPT is then Wanda: nothing but zeros is put in."""
    rng = np.random.default_rng(1)
    w, sizes = rng.normal(size=(8, 16)).astype(np.float32), np.diag(np.linspace(1, 2, 16)).astype(np.float32)
    new = sparsegpt(w, sizes, TWO_OF_FOUR)
    np.testing.assert_array_equal(new[new != 0], w[new != 0])
    np.testing.assert_array_equal(new == 0, wanda(w, sizes + 0.015 * np.eye(16, dtype=np.float32), TWO_OF_FOUR) == 0)


def test_what_goes_of_a_pattern_is_chosen_by_loss() -> None:
    """One span of one row: no other choice of two loses less than that of the method by more than its greed explains."""
    rng = np.random.default_rng(2)
    moments = second(rng, 4) + 0.1 * np.eye(4, dtype=np.float32)
    w = rng.normal(size=(200, 4)).astype(np.float32)
    new = sparsegpt(w, moments, TWO_OF_FOUR)
    best = np.full(200, np.inf)
    for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        left = [i for i in range(4) if i not in pair]
        fitted = np.zeros_like(w)
        fitted[:, left] = np.linalg.solve(moments[np.ix_(left, left)], (w @ moments)[:, left].T).T
        best = np.minimum(best, np.einsum("ni,ij,nj->n", w - fitted, moments, w - fitted))
    got = np.einsum("ni,ij,nj->n", w - new, moments, w - new)
    assert (got > best - 1e-4).all()
    assert got.sum() < 4 * best.sum()


# --- the pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_every_linear_goes(model: Module, method: str, pattern: str) -> None:
    after, receipt = thinned(model, f"sparsify{{method={method} pattern={pattern}}}")
    assert receipt.sites == 14
    for name, const in after.consts.items():
        array = const.weight.materialize()
        if const.type.rank == 2 and name not in ("embed", "head"):
            assert (array == 0).mean() == pytest.approx(0.5, abs=0.03)
        else:
            np.testing.assert_array_equal(array, model.consts[name].weight.materialize())
    assert receipt.details["error"]["relative"] < 1.4
    assert receipt.bytes_after == receipt.bytes_before


def test_making_good_is_nearer(model: Module) -> None:
    found = [thinned(model, f"sparsify{{method={method}}}")[1].details["error"]["kl"] for method in ("magnitude", "sparsegpt")]
    assert found[1] < found[0]


def test_only_skip_and_ratio(model: Module) -> None:
    after, receipt = thinned(model, "sparsify{method=magnitude ratio=0.25 only=*.mlp.* skip=l0.*}")
    assert receipt.sites == 3
    assert {name for name in numbers(model) if numbers(model)[name] != numbers(after)[name]} == {
        "l1.mlp.gate", "l1.mlp.up", "l1.mlp.down"}
    after, _ = thinned(model, "sparsify{method=magnitude only=head}")
    assert (after.consts["head"].weight.materialize() == 0).mean() == pytest.approx(0.5)


def test_killed_it_goes_on(model: Module, tmp_path: Path) -> None:
    whole, told = thinned(model, "sparsify{pattern=2:4}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsify, "sparsegpt", killing(sparsegpt, 6))
        with pytest.raises(Killed):
            thinned(model, "sparsify{pattern=2:4}", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsify, "sparsegpt", killing(sparsegpt, 14 - 5 + 1))  # it is called for the rest alone
        resumed, said = thinned(model, "sparsify{pattern=2:4}", tmp_path)
    assert numbers(resumed) == numbers(whole)
    assert said.details["sites"] == told.details["sites"]


@pytest.mark.parametrize(("pipeline", "message"), [
    ("sparsify{ratio=1}", "between 0 and 1"), ("sparsify{pattern=2:4 ratio=0.3}", "leave ratio out"),
    ("sparsify{pattern=3:4}", "must be one of"), ("quantize,sparsify", "cannot follow quantize")])
def test_mistakes_are_refused(model: Module, pipeline: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        check_order(parse_pipeline(pipeline), model, has_calibration=True)
    assert message in str(caught.value)


def test_text_is_needed_where_it_is_read(model: Module) -> None:
    with pytest.raises(PassError, match="needs calibration text"):
        check_order(parse_pipeline("sparsify"), model)
    check_order(parse_pipeline("sparsify{method=magnitude}"), model)
