"""How values are coded as 8-bit floats in front of a linear: f8e4m3 under a step in f32, or under a power of two for every block
of 32 (OCP Microscaling Formats v1.0, MXFP8 with E4M3 elements).

Codes are chosen and read in f32 (f64 for f64), whatever the value's type: in f16 a step of a small value would lose its digits.
"""

from __future__ import annotations

from ingot.ir.integer_coding import LEAST
from ingot.ir.module import Builder
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.layout import Reshape
from ingot.ir.ops.pointwise import Abs, Cast, Clamp, Div, Mul
from ingot.ir.ops.reduce import Max
from ingot.ir.types import DType, f8e4m3, f8e8m0, f32
from ingot.ir.value import Value

GREATEST = 448.0
"""The greatest f8e4m3; there is no infinity, and casts of more may give NaN, so that values are clipped to it."""
BLOCK = 32
"""Elements along the last axis that share a power of two."""
_UP = 1.5 * (1 - 2.0 ** -20)
"""A power of two times this is rounded down to that power, anything above it up to the next: casts to f8e8m0 are to nearest."""


def computed(dtype: DType) -> DType:
    """The type of steps, and what codes are chosen and read in, for values of a type."""
    return dtype if dtype.bits > 32 else f32


def encode(b: Builder, x: Value, step: Value) -> Value:
    """Codes f8e4m3 of a float value, clipped; `step`, f32 (f64 for f64), broadcasts to it."""
    return b(Cast(b(Clamp(b(Div(x, step)), -GREATEST, GREATEST)), f8e4m3))


def decode(b: Builder, codes: Value, step: Value, dtype: DType) -> Value:
    """The floats that codes stand for, rounded to `dtype` last."""
    return _cast(b, b(Mul(b(Cast(codes, step.type.dtype)), step)), dtype)


def token_step(b: Builder, x: Value) -> Value:
    """The step f32[..., 1] (f64 for f64) by which the greatest magnitude in the last axis of x becomes the greatest code."""
    peak = _peak(b, x)
    return b(Mul(peak, b(Scalar(1 / GREATEST, peak.type.dtype))))


def coded_in_blocks(b: Builder, x: Value) -> Value:
    """x [..., k] read from MXFP8 codes f8e4m3[..., k / 32, 32] of it, under scales f8e8m0[..., k / 32, 1].

    A block's scale is the least power of two by which its greatest magnitude is no more than 448, so that nothing is clipped
    (Mishra et al., arXiv 2506.08027: exponents rounded up). The specification's own rule, 2^(floor(log2 peak) - 8), would
    clip what lies between 448 and 512 of them. k must be a multiple of 32.
    """
    *lead, k = x.type.dims
    blocks = b(Reshape(x, (*lead, k // BLOCK, BLOCK)))
    peak = _peak(b, blocks)
    scale = b(Cast(b(Mul(peak, b(Scalar(_UP / GREATEST, peak.type.dtype)))), f8e8m0))
    factor = b(Cast(scale, peak.type.dtype))
    return b(Reshape(decode(b, encode(b, blocks, factor), factor, x.type.dtype), x.type.dims))


def _peak(b: Builder, x: Value) -> Value:
    """The greatest magnitude in the last axis, never zero."""
    peak = b(Max(b(Abs(x)), axis=(-1,), keep=True))
    return b(Clamp(_cast(b, peak, computed(x.type.dtype)), LEAST))


def _cast(b: Builder, x: Value, dtype: DType) -> Value:
    return x if x.type.dtype == dtype else b(Cast(x, dtype))
