"""Normalisations, products, convolutions, quantised weights."""

from __future__ import annotations

import numpy as np

from ingot.ir.formats import FORMATS
from ingot.ir.ops.conv import AvgPool, Conv, MaxPool
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, bf16, f16, f32, f64, i32, i64, u4, u8
from ingot.ir.value import Value
from tests.backends.op_case import B, Case, Draw, S, T, between, case, positive, results

for _dtype in (f32, f16, bf16):
    case(RmsNorm, str(_dtype), lambda c, d=_dtype: c(RmsNorm(c.x(B, S, 8, dtype=d), c.w(8, dtype=d), eps=1e-5)))
    case(LayerNorm, str(_dtype), lambda c, d=_dtype: c(LayerNorm(c.x(B, S, 8, dtype=d), c.w(8, dtype=d), c.w(8, dtype=d))))
case(RmsNorm, "no weight", lambda c: c(RmsNorm(c.x(B, S, 2, 4), eps=0.1)))
case(RmsNorm, "bf16 with an f32 weight", lambda c: c(RmsNorm(c.x(B, 8, dtype=bf16), c.w(8), eps=1e-5)))
case(LayerNorm, "no weight", lambda c: c(LayerNorm(c.x(B, 8))))
case(LayerNorm, "bias alone", lambda c: c(LayerNorm(c.x(B, 8), None, c.w(8), eps=0.5)))
for _dtype in (f32, bf16):
    case(SkipRmsNorm, str(_dtype), lambda c, d=_dtype: results(
        SkipRmsNorm(c.x(B, S, 8, dtype=d), c.x(B, S, 8, dtype=d), c.w(8, dtype=d), eps=1e-5), c))
    case(SkipLayerNorm, str(_dtype), lambda c, d=_dtype: results(
        SkipLayerNorm(c.x(B, S, 8, dtype=d), c.x(B, S, 8, dtype=d), c.w(8, dtype=d), c.w(8, dtype=d), eps=1e-5), c))
case(SkipRmsNorm, "no weight, sum unused", lambda c: results(SkipRmsNorm(c.x(B, 8), c.x(B, 8), eps=0.1), c)[0])
case(SkipLayerNorm, "no weight", lambda c: results(SkipLayerNorm(c.x(B, 8), c.x(B, 8)), c))
case(GroupNorm, "2d", lambda c: c(GroupNorm(c.x(B, 6, S, 2), c.w(6), c.w(6), groups=3)))
case(GroupNorm, "no weight", lambda c: c(GroupNorm(c.x(B, 4, 5), groups=2, eps=0.1)))
case(BatchNorm, "2d", lambda c: c(BatchNorm(c.x(B, 3, S, 2), c.w(3), c.w(3, draw=positive), c.w(3), c.w(3))))
case(BatchNorm, "statistics alone", lambda c: c(BatchNorm(c.x(B, 3), c.w(3), c.w(3, draw=positive), eps=0.1)))

for _dtype in (f32, f16, bf16, f64):
    case(Linear, str(_dtype), lambda c, d=_dtype: c(Linear(c.x(B, S, 16, dtype=d), c.w(8, 16, dtype=d), c.w(8, dtype=d))))
case(Linear, "no bias, rank 1", lambda c: c(Linear(c.x(16), c.w(8, 16))))
case(Linear, "computed weight", lambda c: c(Linear(c.x(B, 6), c.x(4, 6))))
case(Linear, "f32 with a bf16 weight", lambda c: c(Linear(c.x(B, 16), c.w(8, 16, dtype=bf16))))
case(Linear, "shared with a table",
     lambda c: (w := c.w(9, 4), c(Linear(c(Embedding(c.x(B, S, dtype=i64, draw=between(0, 8)), w)), w)))[1])
for _dtype in (f32, bf16):
    case(MatMul, str(_dtype), lambda c, d=_dtype: c(MatMul(c.x(B, 2, S, 4, dtype=d), c.x(B, 2, 4, T, dtype=d))))
case(MatMul, "broadcast", lambda c: c(MatMul(c.x(B, 3, S, 4), c.x(3, 4, 5))))
case(MatMul, "plain", lambda c: c(MatMul(c.x(S, 4), c.w(4, 5))))
for _dtype in (f32, bf16):
    case(Embedding, str(_dtype), lambda c, d=_dtype: c(Embedding(c.x(B, S, dtype=i64, draw=between(0, 8)), c.w(9, 4, dtype=d))))
case(Embedding, "i32", lambda c: c(Embedding(c.x(S, dtype=i32, draw=between(0, 8)), c.w(9, 4))))

case(Conv, "1d", lambda c: c(Conv(c.x(B, 4, 9), c.w(6, 4, 3), c.w(6), stride=(2,), padding=(1, 2), dilation=(1,))))
case(Conv, "2d grouped",
     lambda c: c(Conv(c.x(B, 4, 7, 6), c.w(6, 2, 3, 2), stride=(1, 2), padding=(1, 0, 1, 1), dilation=(2, 1), groups=2)))
case(Conv, "depthwise causal",
     lambda c: c(Conv(c.x(B, 4, S), c.w(4, 1, 3), c.w(4), stride=(1,), padding=(2, 0), dilation=(1,), groups=4)))
case(Conv, "3d",
     lambda c: c(Conv(c.x(1, 2, 3, 4, 4), c.w(2, 2, 2, 2, 2), stride=(1, 1, 2), padding=(0,) * 6, dilation=(1, 1, 1))))
case(Conv, "bf16",
     lambda c: c(Conv(c.x(B, 4, 6, dtype=bf16), c.w(3, 4, 2, dtype=bf16), stride=(1,), padding=(0, 0), dilation=(1,))))
case(MaxPool, "2d", lambda c: c(MaxPool(c.x(B, 3, 7, 6), kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 1))))
case(MaxPool, "ceil", lambda c: c(MaxPool(c.x(B, 3, 8), kernel=(3,), stride=(3,), padding=(0, 0), ceil=True)))
for _count in (True, False):
    case(AvgPool, f"count {_count}",
         lambda c, n=_count: c(AvgPool(c.x(B, 3, 7, 6), kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 1),
                                                                  count_padding=n)))
case(AvgPool, "symbolic", lambda c: (c(AvgPool(c.x(B, 3, 2 * S), kernel=(2,), stride=(2,), padding=(0, 0))), c.x(S)))

def quantized(c: Case, rows: int, columns: int, *, format: str, group: int, zero: bool = False, dtype: DType = f32,
              scales: DType = f32, per_tensor: bool = False) -> Value:
    """A dequantize of random codes [rows, columns], its scales stored as the format stores them."""
    fmt = FORMATS[format]
    finite = fmt.table()[np.isfinite(fmt.table())]
    types = fmt.types((rows, columns), group, symmetric=not zero, per_tensor=per_tensor)
    draws: dict[str, Draw] = {
        "packed": (lambda rng, shape: rng.choice(finite, shape)) if fmt.code.is_float else between(0, fmt.levels - 1),
        "scale": {"u8": between(0, 255), "f8e8m0": lambda rng, shape: 2.0 ** rng.integers(-2, 2, shape)}.get(
            types["scale"].dtype.name, positive),
        "zero": between(0, fmt.levels - 1), "tensor_scale": positive, "offset": positive}
    held = {part: scales if part == "scale" and t.dtype == f32 else t.dtype for part, t in types.items()}
    parts = {part: c.w(*t.shape, dtype=held[part], draw=draws[part]) for part, t in types.items()}
    return c(Dequantize(**parts, format=format, group=group, dtype=dtype))


for _format in FORMATS:
    for _zero in (False, True):
        if _zero and not FORMATS[_format].has_zero_points:
            continue
        _how = f"{_format}{' with zeros' if _zero else ''}"
        case(Dequantize, _how, lambda c, f=_format, z=_zero: quantized(c, 6, 32, format=f, group=16, zero=z))
        case(Dequantize, f"{_how} in a linear", lambda c, f=_format, z=_zero: c(
            Linear(c.x(B, S, 32), quantized(c, 6, 32, format=f, group=16, zero=z), c.w(6))))
        case(Dequantize, f"{_how} in a table", lambda c, f=_format, z=_zero: c(
            Embedding(c.x(B, S, dtype=i64, draw=between(0, 8)), quantized(c, 9, 32, format=f, group=16, zero=z))))
        case(Dequantize, f"{_how}, rows of an odd length, in a linear", lambda c, f=_format, z=_zero: c(
            Linear(c.x(B, 41), quantized(c, 5, 41, format=f, group=16, zero=z))))
        case(Dequantize, f"{_how}, whole rows, in a linear", lambda c, f=_format, z=_zero: c(
            Linear(c.x(B, 48), quantized(c, 8, 48, format=f, group=48, zero=z))))
        case(Dequantize, f"{_how}, whole odd rows, in a table", lambda c, f=_format, z=_zero: c(
            Embedding(c.x(B, S, dtype=i64, draw=between(0, 4)), quantized(c, 5, 27, format=f, group=27, zero=z))))
for _format in ("int8", "int3", "fp4", "fp8-e4m3"):
    case(Dequantize, f"{_format}, one step for all, in a linear",
         lambda c, f=_format: c(Linear(c.x(B, 32), quantized(c, 6, 32, format=f, group=32, per_tensor=True))))
case(Dequantize, "int8 with one zero point for all, tied", lambda c: (
    w := quantized(c, 9, 32, format="int8", group=32, zero=True, per_tensor=True),
    c(Linear(c(Embedding(c.x(B, S, dtype=i64, draw=between(0, 8)), w)), w)))[1])
case(Dequantize, "nf4 of several blocks of scales in a linear",
     lambda c: c(Linear(c.x(B, 128), quantized(c, 40, 128, format="nf4", group=16))))
case(Dequantize, "nf4 with plain scales in a linear", lambda c: c(Linear(c.x(B, 32), c(Dequantize(
    c.w(6, 32, dtype=u4, draw=between(0, 15)), c.w(6, 2, draw=positive), format="nf4", group=16)))))
case(Dequantize, "computed codes of a table", lambda c: c(Dequantize(
    c.x(B, S, 8, dtype=u4, draw=between(0, 15)), c.x(B, S, 2, draw=positive), format="nf4", group=4)))
case(Dequantize, "short last group", lambda c: quantized(c, 3, 21, format="int4", group=8, zero=True))
case(Dequantize, "short last group in a linear",
     lambda c: c(Linear(c.x(B, 21), quantized(c, 3, 21, format="int4", group=8, zero=True))))
case(Dequantize, "one group per row", lambda c: c(Linear(c.x(B, 24), quantized(c, 3, 24, format="int8", group=24, zero=False))))
case(Dequantize, "bf16",
     lambda c: c(Linear(c.x(B, 32, dtype=bf16), quantized(c, 5, 32, format="int4", group=16, zero=False, dtype=bf16,
                                                                              scales=bf16))))
case(Dequantize, "computed codes",
     lambda c: c(Dequantize(c.x(B, S, 8, dtype=u8, draw=between(0, 255)), c.x(B, S, 2, draw=positive),
                                                          format="int8", group=4)))
case(Dequantize, "shared", lambda c: (w := quantized(c, 9, 32, format="int4", group=16, zero=False),
                                      c(Linear(c(Embedding(c.x(B, S, dtype=i64, draw=between(0, 8)), w)), w)))[1])
