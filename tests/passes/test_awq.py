"""awq: nothing that is computed changes, and channels with large activations are rounded more finely."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.formats import format_named
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.quantization import rtn
from ingot.passes.quantization.awq import Awq, factors, lost_by
from ingot.testing import Decoder, assert_exact, decoders
from tests.passes.test_rotate import LLAMA

TEXT = [np.random.default_rng(s).integers(0, 8, (2, 12)) for s in range(3)]


@settings(max_examples=6)
@given(decoders())
def test_random_decoders_compute_the_same(module: Module) -> None:
    after = copy_module(module)
    Awq(format="int3", group=16).run(after, Context(calibration=TEXT))
    assert_exact(module, after)


def test_factors() -> None:
    size = np.array([4.0, 1.0, 0.0, 0.25])
    np.testing.assert_allclose(factors(size, 0.5), [2, 1, 1, 0.5])
    np.testing.assert_allclose(factors(size, 0.0), 1)
    scaled = factors(np.array([8.0, 2.0]), 1.0)
    assert scaled[0] * scaled[1] == pytest.approx(1)


def test_a_large_channel_is_worth_a_factor() -> None:
    rng = np.random.default_rng(0)
    w, size = rng.normal(size=(32, 64)).astype(np.float32), np.ones(64)
    size[7] = 30
    second = np.diag(size ** 2).astype(np.float32)

    def rounding(w: np.ndarray) -> np.ndarray:
        return rtn.rounded(w, format_named("int3"), group=64).decoded()

    losses = [lost_by(w, factors(size, alpha).astype(np.float32), second, rounding) for alpha in (0.0, 0.5)]
    assert losses[1] < 0.5 * losses[0]
    assert lost_by(w, np.ones(64, np.float32), second, lambda w: w) == 0


def test_the_loss_is_that_of_what_is_computed() -> None:
    rng = np.random.default_rng(1)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 32), (100, 32)))
    factor = rng.uniform(0.25, 4, 32).astype(np.float32)

    def rounding(w: np.ndarray) -> np.ndarray:
        return rtn.rounded(w, format_named("int3"), group=32).decoded()

    error = (x / factor) @ rounding(w * factor).T - x @ w.T
    assert lost_by(w, factor, x.T @ x / len(x), rounding) == pytest.approx(np.square(error).sum() / len(x), rel=1e-4)


def outliers() -> Module:
    """A decoder with a few residual channels that its norms make thirty times larger than the others."""
    module = Decoder(**LLAMA | {"width": 64, "tied": False}).module()  # type: ignore[arg-type]
    for name, const in module.consts.items():
        if "norm" in name:
            array = const.weight.materialize().copy()
            array[[3, 17, 40]] *= 30
            module.set_weight(const, ArrayWeight(array))
    return module


def test_the_model_loses_less() -> None:
    module = outliers()
    ids = np.random.default_rng(9).integers(0, 24, (8, 12))
    logits = partial(run, inputs=[ids, np.broadcast_to(np.arange(12), ids.shape)])
    [wanted] = logits(module)
    errors = []
    for text in ("quantize{format=int3 group=64}", "awq{format=int3 group=64},quantize{format=int3 group=64}"):
        after = copy_module(module)
        receipts = run_pipeline(after, parse_pipeline(text), Context(calibration=TEXT))
        errors.append(float(np.square(logits(after)[0] - wanted).mean()))
    assert errors[1] < 0.7 * errors[0]
    assert 0 < receipts[0].details["alpha"] < 1


@pytest.mark.parametrize(("text", "match"), [("awq", "needs calibration text"), ("quantize,awq", "cannot follow quantize"),
                                             ("awq{format=mxfp4 group=64}", "mxfp4 has groups of 32, not of 64")])
def test_refused(text: str, match: str) -> None:
    with pytest.raises(PassError, match=match):
        run_pipeline(outliers(), parse_pipeline(text))
