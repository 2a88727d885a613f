"""Rotations: random decoders and known architectures compute the same afterwards, ties stay, outliers are spread."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.matmul import Linear
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.recipes import TRACE
from ingot.passes.rotation.hadamard import Rotation, hadamard_core
from ingot.passes.rotation.rotate import Rotate
from ingot.testing import Decoder, assert_exact, decoders
from tests.frontend.examples import imported

LLAMA = {"layers": 2, "place": "pre", "final_norm": True, "mlp": "gated", "activation": "silu", "kv_heads": 2, "group": 2,
         "positions": "rope", "width": 8, "vocab": 24}


def traced(name: str) -> Module:
    module = copy_module(imported(name)[0])
    run_pipeline(module, parse_pipeline(TRACE))
    return module


def rotated(module: Module, p: Rotate | None = None) -> tuple[Module, int, dict[str, str]]:
    after, ctx = copy_module(module), Context()
    sites = (p or Rotate()).run(after, ctx)
    assert_exact(module, after)
    return after, sites, ctx.details.get("skipped", {})


@settings(max_examples=30)
@given(decoders())
def test_random_decoders_compute_the_same(module: Module) -> None:
    rotated(module, Rotate(seed=3))


@pytest.mark.parametrize(("name", "sites", "skipped"), [
    ("llama", 3, ""), ("phi3", 3, ""), ("gpt2", 3, ""),
    ("gemma2", 2, "a norm's result enters the residual stream"), ("bert", 2, "takes the result of a norm")])
def test_architectures(name: str, sites: int, skipped: str) -> None:
    """One site is the residual stream, one each layer's heads."""
    after, found, reasons = rotated(traced(name))
    assert found == sites
    assert skipped in reasons.get("residual", "")
    assert bool(skipped) == ("residual" in reasons)
    if not skipped:
        assert {op.name for op in after.ops}.isdisjoint({"layer_norm", "skip_layer_norm"})
        assert not any(op.w is not None for op in after.ops if op.name in ("rms_norm", "skip_rms_norm") and op.x.type.rank == 3)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_tied_output_projection(norm: str) -> None:
    """Stays tied behind one square linear; with means taken away it gets a weight of its own."""
    before = Decoder(**LLAMA, norm=norm, norm_bias=norm == "layer").module()
    after, _, _ = rotated(before)
    shapes = [c.type.shape for c in after.consts.values()]
    assert shapes.count((24, 8)) == (1 if norm == "rms" else 2)
    linears = [sum(isinstance(op, Linear) for op in m.ops) for m in (before, after)]
    assert linears[1] - linears[0] == (1 if norm == "rms" else 0)


def test_an_outlier_channel_is_spread() -> None:
    module = Decoder(**LLAMA | {"width": 64, "vocab": 200}, tied=False).module()
    const = module.consts["embed"]
    array = const.weight.materialize().copy()
    array[:, 5] *= 50
    module.set_weight(const, type(const.weight)(array))
    after, _, _ = rotated(module)

    def peak(m: Module) -> float:
        w = m.consts["embed"].weight.materialize()
        return float((np.abs(w).max(1) / np.sqrt(np.square(w).mean(1))).mean())

    assert peak(module) > 7 > 4 > peak(after)


def test_parts_and_seeds() -> None:
    module = Decoder(**LLAMA).module()
    rows, heads = (rotated(module, Rotate(residual=r, heads=not r))[0] for r in (True, False))
    assert rows.consts["embed"].weight.origin != module.consts["embed"].weight.origin
    assert heads.consts["embed"].weight is module.consts["embed"].weight
    assert heads.consts["l0.attn.v"].weight.origin == 'computed(pass="rotate", key="l0.attn.v")'
    one, same, other = (rotated(module, Rotate(seed=s))[0].consts["embed"].weight.materialize() for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_values_that_two_attentions_read_stay() -> None:
    """Layers that share their keys and values."""
    module = Decoder(**LLAMA).module()
    first, second = (op for op in module.ops if isinstance(op, Attention))
    for name in ("k", "v"):
        module.main.set_operand(second, name, getattr(first, name))
    module.main.drop_dead()
    _, sites, skipped = rotated(module)
    assert sites == 1
    assert "two attentions read the same values" in str(skipped)


def test_what_cannot_be_turned_is_named() -> None:
    module = Decoder(place="post", final_norm=True).module()
    with pytest.raises(PassError, match="nothing can be turned in this model: residual: a norm's result enters"):
        Rotate(heads=False).run(module, Context())
    with pytest.raises(PassError, match="cannot follow quantize"):
        run_pipeline(module, parse_pipeline("quantize,rotate"))


@pytest.mark.parametrize("n", [1, 2, 12, 20, 28, 32, 36, 96, 288, 576])
def test_hadamard_matrices(n: int) -> None:
    matrix = Rotation(n, seed=1)(np.eye(n))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(np.abs(matrix), n ** -0.5, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 6, 52])
def test_other_sizes_turn_by_a_random_matrix(n: int) -> None:
    assert hadamard_core(n) is None
    matrix = Rotation(n)(np.eye(n))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)
    x = np.random.default_rng(0).normal(size=(2, 3, n))
    np.testing.assert_allclose(Rotation(n)(x), x @ matrix, atol=1e-12)
