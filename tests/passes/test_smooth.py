"""smooth, and the places where factors move: nothing that is computed changes, and activations become even."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.text import parse_module
from ingot.passes.base import Context
from ingot.passes.calibration.calibrate import peaks
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.quantization.scale_sites import ScaleSite, scale_sites
from ingot.passes.quantization.smooth import Smooth, column_peaks
from ingot.testing import Decoder, assert_exact, decoders
from tests.passes.conftest import fill
from tests.passes.test_rotate import LLAMA, traced

TEXT = [np.random.default_rng(0).integers(0, 8, (1, 12))]


def smoothed(module: Module, alpha: float = 0.5) -> Module:
    after = copy_module(module)
    Smooth(alpha=alpha).run(after, Context(calibration=TEXT))
    assert_exact(module, after)
    return after


def sites(module: Module) -> list[ScaleSite]:
    return list(scale_sites(module.main))


@settings(max_examples=30)
@given(decoders())
def test_random_decoders_compute_the_same(module: Module) -> None:
    smoothed(module)


@pytest.mark.parametrize(("name", "norms", "linears"), [
    ("llama", 5, 4), ("phi3", 5, 4), ("gemma2", 4, 4), ("gpt2", 4, 2)])
def test_architectures(name: str, norms: int, linears: int) -> None:
    """Norms before linears (the last one only where the output projection is not tied), values, up projections."""
    module = traced(name)
    found = sites(module)
    kinds = [isinstance(site.source, Linear) for site in found]
    assert (kinds.count(False), kinds.count(True)) == (norms, linears)
    after = copy_module(module)
    Smooth().run(after, Context(calibration=[np.arange(3, 27)[None]]))
    assert_exact(module, after)


def test_only_rows_that_pass_a_factor_are_free() -> None:
    """Of a joined gate and up projection the up half; of joined queries, keys and values the values, once for all heads."""
    module = Decoder(**LLAMA, qkv="fused", mlp_fused=True, tied=False).module()
    up, qkv = (next(s for s in sites(module) if isinstance(s.source, Linear) and s.source.w.hint == name)
               for name in ("l0.mlp.gate_up", "l0.attn.qkv"))
    half = len(up.free) // 2
    assert not up.free[:half].any()
    assert up.free[half:].all()
    assert qkv.free.tolist() == [False] * 24 + [True] * 8  # 4 query and 2 key heads of 4, then the values
    [columns] = qkv.readers.values()
    assert columns.tolist() == [24, 25, 26, 27] * 2 + [28, 29, 30, 31] * 2


BLOCKED = """
module @m {
  dim B in 1..4
  const @up : f32[6, 4] = file(key="up")
  const @down : f32[4, 6] = file(key="down")
  func @forward(%x: f32[B, 4]) -> (RESULTS) {
    %h = linear(%x, @up) : f32[B, 6]
    BODY
    %y = linear(%a, @down) : f32[B, 4]
    return RETURNS
  }
}
"""


@pytest.mark.parametrize(("body", "returned", "found"), [
    ("%a = relu(%h) : f32[B, 6]", "%y", 1),
    ("%a = silu(%h) : f32[B, 6]", "%y", 0),
    ("%a = relu(%h) : f32[B, 6]", "%y, %h", 0),
    ("%a = mul(%h, %h) : f32[B, 6]", "%y", 0),
    ("%a = add(%h, %h) : f32[B, 6]", "%y", 0),
    ("%t = tanh(%h) : f32[B, 6]\n    %a = mul(%h, %t) : f32[B, 6]", "%y", 0),
])
def test_where_a_factor_does_not_pass(body: str, returned: str, found: int) -> None:
    results = ", ".join({"%y": "f32[B, 4]", "%h": "f32[B, 6]"}[name] for name in returned.split(", "))
    module = parse_module(BLOCKED.replace("BODY", body).replace("RETURNS", returned).replace("RESULTS", results))
    fill(module)
    assert len(sites(module)) == found
    before = copy_module(module)
    for site in sites(module):
        site.move(module, np.arange(1.0, 7), made_by="test")
    assert_exact(before, module)


def test_shared_weights_stay() -> None:
    """A tied output projection is not scaled, nor a norm's weight that two norms share."""
    assert len(sites(Decoder(**LLAMA, tied=True).module())) + 1 == len(sites(Decoder(**LLAMA, tied=False).module()))


def test_a_norm_without_a_weight_gets_one() -> None:
    module = Decoder(**LLAMA, norm_weight="none").module()
    assert not any(op.w for op in module.ops if isinstance(op, RmsNorm))
    after = smoothed(module)
    assert sum(op.w is not None for op in after.ops if isinstance(op, RmsNorm)) == 4


def test_activations_and_weights_share_the_size() -> None:
    """With alpha 1/2 a channel's greatest activation and weight are equal (where no other site changes that weight); with 1 all
    activations reach 1."""
    module = Decoder(**LLAMA, tied=False).module()
    for alpha in (0.5, 1.0):
        after = smoothed(module, alpha)
        seen = peaks(after, [x for site in sites(after) for x in site.inputs], Context(calibration=TEXT), keep=(-1,))
        for site in sites(after):
            x = site.gather({r: seen[r.x].reshape(-1) for r in site.readers})[site.free]
            w = site.gather({r: column_peaks(r) for r in site.readers})[site.free]
            if alpha == 1:
                np.testing.assert_allclose(x[x > 0], 1, rtol=1e-4)
            elif isinstance(site.source, Linear):
                np.testing.assert_allclose(x[x > 0], w[x > 0], rtol=1e-4)


@pytest.mark.parametrize(("text", "match"), [("smooth{alpha=1.5}", "an alpha of 0 to 1, not 1.5"),
                                             ("quantize,smooth", "cannot follow quantize"), ("smooth", "needs calibration text")])
def test_refused(text: str, match: str) -> None:
    with pytest.raises(PassError, match=match):
        run_pipeline(Decoder(**LLAMA).module(), parse_pipeline(text))


def test_origins_name_the_pass() -> None:
    after = smoothed(Decoder(**LLAMA).module())
    origins: list[Any] = [c.weight.origin for c in after.consts.values()]
    assert 'computed(pass="smooth", key="l0.mlp.down")' in origins
