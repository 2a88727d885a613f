"""Linears on packed weights for many rows at once: int8 activations times int8 weights.

4-bit kernels win while one row is multiplied; from a handful of rows on, int8 x int8 products are several times as fast.
So an artifact may carry a second graph, for prefill and for batches, whose weights file is made from the artifact's own when
that graph is first loaded: the artifact stays as small. Activations are quantised per row (a scale for a whole tensor would
let one outlier cost every row its precision) unless they are rounded by a step of their own; weights per output channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.contrib_decoded import decodable, floats
from ingot.backends.onnx.contrib_quant import kernel_bits
from ingot.backends.onnx.made_at_load import Int8Rows
from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.formats import format_named
from ingot.ir.integer_coding import rounded
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Mul
from ingot.ir.pattern import NoMatch
from ingot.ir.types import TensorType, f32, i8, u8
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

LEAST_BYTES = 1 << 14
"""Smaller weights stay with the 4-bit kernel."""


@rule(Linear, contrib=True)
def linear(op: Linear, lo: Lowering) -> str:
    if not lo.int8_rows:
        raise Decline("not the graph for many rows")
    decode = decodable(op.w)
    name, (n, k) = decode.packed.hint, decode.packed.type.shape
    bits = kernel_bits(format_named(decode.format))
    if not bits or n * k * bits // 8 < LEAST_BYTES:
        raise Decline("a small weight, or one that is multiplied in floats")
    source = floats(lo, decode)
    w = lo.stored((decode, "int8"), f"{name}.int8", lambda: Int8Rows(TensorType(i8, (k, n)), source))
    w_scale = lo.stored((decode, "int8 scale"), f"{name}.int8_scale", lambda: Int8Rows(TensorType(f32, (n,)), source))
    given, own = _rounded(op.x)
    x, middle = lo(given), lo.const(128, u8)
    if own is not None:
        step = _one(lo, own)
        coded = lo.emit("QuantizeLinear", x, step, middle)
        y = lo.emit("MatMulIntegerToFloat", coded, w, step, w_scale, middle, domain=CONTRIB_DOMAIN)
        return y if op.bias is None else lo.emit("Add", y, lo(op.bias))
    step = lo.const(1 / 127, f32)
    # A row of zeros divides to NaN, codes to some number, and is multiplied by zero again.
    peak = lo.emit("ReduceMax", lo.emit("Abs", x), lo.const([-1]), keepdims=1)
    coded = lo.emit("QuantizeLinear", lo.emit("Div", x, peak), step, middle, domain=CONTRIB_DOMAIN)
    y = lo.emit("Mul", lo.emit("MatMulIntegerToFloat", coded, w, step, w_scale, middle, domain=CONTRIB_DOMAIN), peak)
    return y if op.bias is None else lo.emit("Add", y, lo(op.bias))


@rule(Mul, contrib=True)
def coded_and_read(op: Mul, lo: Lowering) -> str:
    """A value rounded by one step, in two nodes."""
    x, step = _rounded(op.result)
    if step is None or op.result.type.dtype != f32:
        raise Decline("not rounded by one step")
    one, middle = _one(lo, step), lo.const(128, u8)
    return lo.emit("DequantizeLinear", lo.emit("QuantizeLinear", lo(x), one, middle), one, middle)


def _one(lo: Lowering, step: Const) -> str:
    """A step for all as a scalar."""
    return lo.emit("Squeeze", lo.weight(step)) if step.type.rank else lo.weight(step)


def _rounded(value: Value) -> tuple[Value, Const | None]:
    """`rounded`; the value itself where it is not."""
    try:
        return rounded(value)
    except NoMatch:
        return value, None
