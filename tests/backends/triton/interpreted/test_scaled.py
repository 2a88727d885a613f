"""Products of MXFP8 with MXFP4: codes under powers of two on both sides, multiplied as they are from many rows on."""

from __future__ import annotations

from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest

from ingot.backends.triton import device, matmul
from ingot.compiler import optimize
from ingot.ir.formats import format_named
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.ir.types import f8e4m3, f8e8m0
from ingot.ir.weights import ArrayWeight
from tests.backends.triton.interpreted.check import agree, changed

TEXT = """
module @scaled {
  dim B in 1..400
  const @w : f4e2m1[144, K] = memory()
  const @s : f8e8m0[144, GROUPS] = memory()
  func @forward(%c: f8e4m3[B, 2, GROUPS, 32], %p: f8e8m0[B, 2, GROUPS, 1]) -> (DTYPE[B, 2, N]) {
    %f = cast(%c) {dtype = f32} : f32[B, 2, GROUPS, 32]
    %q = cast(%p) {dtype = f32} : f32[B, 2, GROUPS, 1]
    %t = mul(%f, %q) : f32[B, 2, GROUPS, 32]
NARROW    %x = reshape(%LAST) {shape = [B, 2, K]} : DTYPE[B, 2, K]
    %d = dequantize(@w, @s) {format = "mxfp4", group = 32, dtype = DTYPE} : DTYPE[144, K]
    %y = linear(%x, %d) : DTYPE[B, 2, 144]
REST    return %o
  }
}
"""
PLAIN = "    %o = relu(%y) : DTYPE[B, 2, 144]\n"
GATED = """    %g, %u = split(%y) {axis = 2, sizes = [72, 72]} : DTYPE[B, 2, 72], DTYPE[B, 2, 72]
    %a = silu(%g) : DTYPE[B, 2, 72]
    %o = mul(%a, %u) : DTYPE[B, 2, 72]
"""


def scaled(groups: int, *, rest: str = PLAIN, dtype: str = "f32") -> Module:
    """A product that reads two rows for each B; its weight's groups differ in size."""
    narrow = f"    %h = cast(%t) {{dtype = {dtype}}} : {dtype}[B, 2, GROUPS, 32]\n" if dtype != "f32" else ""
    text = TEXT.replace("REST", rest).replace("NARROW", narrow).replace("LAST", "h" if narrow else "t")
    text = text.replace("DTYPE", dtype).replace("GROUPS", str(groups)).replace("K", str(32 * groups))
    module = parse_module(text.replace(", N]", ", 144]" if rest is PLAIN else ", 72]"))
    rng = np.random.default_rng(groups)
    fmt = format_named("mxfp4")
    w = (rng.normal(size=(144, groups, 32)) * np.exp2(rng.integers(-5, 5, size=(144, groups, 1)))).astype(np.float32)
    step, _ = fmt.parameters(w)
    module.consts["w"].weight = ArrayWeight(fmt.encode(w, step[..., None]).reshape(144, -1), dtype=module.consts["w"].type.dtype)
    module.consts["s"].weight = ArrayWeight(step.astype(f8e8m0.numpy))
    return module


def inputs(groups: int, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows)
    codes = (100 * rng.normal(size=(rows, 2, groups, 32))).astype(ml_dtypes.float8_e4m3fn)
    return [codes, np.exp2(rng.integers(-12, -4, size=(rows, 2, groups, 1))).astype(ml_dtypes.float8_e8m0fnu)]


@pytest.mark.parametrize("rest", [PLAIN, GATED])
@pytest.mark.parametrize("rows", [1, 4, 20, 70])
@pytest.mark.parametrize("groups", [2, 7])
def test_every_number_of_rows(groups: int, rows: int, rest: str) -> None:
    """Few rows read what the codes stand for. The depth may end within a tile, and within a word of scales."""
    module = scaled(groups, rest=rest)
    with patch.object(matmul, "MANY_ROWS", 64):
        compiled = agree(module, inputs(groups, rows), limit=4e-6)
    assert len(compiled.steps) == 1
    assert "device.scaled_dot(" in compiled.source


@pytest.mark.parametrize("rest", [PLAIN, GATED])
def test_where_tensor_cores_know_scales(rest: str) -> None:
    with patch.object(matmul, "MANY_ROWS", 64), patch.object(device, "scales", lambda: True):
        agree(scaled(5, rest=rest), inputs(5, 70), limit=4e-6)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_what_is_read_as_narrower_floats(dtype: str) -> None:
    """The cast to them lies between codes and product."""
    module = scaled(3, dtype=dtype)
    with patch.object(matmul, "MANY_ROWS", 64):
        for rows in (3, 70):
            assert len(agree(module, inputs(3, rows)).steps) == 1


@pytest.mark.parametrize("mistake", [
    ("(8 * part + 4)", "(8 * part)"), ("& 15) << 20", "& 15) << 24"), ("n_down * 8 + share,", "n_down * 8 + 0 * share,"),
    ("p_at, w_at", "p_at + 1, w_at")])
@pytest.mark.parametrize("native", [True, False])
def test_codes_and_scales_read_wrongly_are_noticed(mistake: tuple[str, str], native: bool) -> None:
    with changed(*mistake), patch.object(matmul, "MANY_ROWS", 64), patch.object(device, "scales", lambda: native), \
            pytest.raises(AssertionError, match="is off by"):
        agree(scaled(7), inputs(7, 70), limit=4e-6)


def test_written_by_the_pass() -> None:
    """Codes and scales of inputs lie in memory, in a byte each; nothing else does but what is returned."""
    module = parse_module("""
module @pass {
  dim M in 1..400
  const @w : f32[48, 96] = memory()
  const @v : f32[64, 96] = memory()
  func @forward(%x: f32[M, 96]) -> (f32[M, 48], f32[M, 64]) {
    %y = linear(%x, @w) : f32[M, 48]
    %z = linear(%x, @v) : f32[M, 64]
    return %y, %z
  }
}
""")
    rng = np.random.default_rng(0)
    for const in module.consts.values():
        const.weight = ArrayWeight(rng.normal(size=const.type.shape).astype(np.float32))
    optimize(module, "quantize{format=mxfp4},quantize-inputs{format=mxfp8}")
    x = (rng.normal(size=(70, 96)) * np.exp(3 * rng.normal(size=(70, 1)))).astype(np.float32)
    for rows in (1, 70):
        with patch.object(matmul, "MANY_ROWS", 64):
            compiled = agree(module, [x[:rows]], limit=4e-6)
    assert compiled.source.count("device.scaled_dot(") == 2
    codes, *products = compiled.steps
    assert {v.type.dtype for v in codes.group.outputs} == {f8e4m3, f8e8m0}
    assert len(products) == 2


def test_scales_of_bytes_in_memory() -> None:
    """Powers of two that are returned, read by another kernel and by torch: any positive number to the nearest, as numpy does."""
    module = parse_module("""
module @bytes {
  dim M in 1..4096
  func @forward(%x: f32[M]) -> (f8e8m0[M], f32[M], f32[1]) {
    %p = cast(%x) {dtype = f8e8m0} : f8e8m0[M]
    %y = cast(%p) {dtype = f32} : f32[M]
    %n = sum(%y) {axis = [0], keep = true} : f32[1]
    return %p, %y, %n
  }
}
""")
    rng = np.random.default_rng(0)
    x = np.concatenate([np.exp2(rng.uniform(-120, 120, 900)), np.exp2(np.arange(-100, 100)), 1.5 * np.exp2(np.arange(-100, 100))])
    agree(module, [x.astype(np.float32)], limit=1e-6)
