"""Linears on packed weights for many rows at once: int8 activations times int8 weights.

4-bit kernels win while one row is multiplied; from a handful of rows on, int8 x int8 products are several times as fast.
So an artifact may carry a second graph, for prefill and for batches, whose weights file is made from the artifact's own when
that graph is first loaded: the artifact stays as small. Activations are quantised per row (a scale for a whole tensor would
let one outlier cost every row its precision), weights per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.contrib_quant import MATMUL_BITS, packed_parts, stored_codes
from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.backends.onnx.weights import INLINE
from ingot.errors import IRError
from ingot.ir.formats import format_named
from ingot.ir.ops.matmul import Linear
from ingot.ir.types import TensorType, f32, i8, u8
from ingot.ir.weights import Weight, call

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

LEAST_BYTES = 1 << 14
"""Smaller weights stay with the 4-bit kernel."""


@dataclass(frozen=True)
class Int8Recipe:
    """An int8 weight [k, n] and its scales [n], to be made from packed codes stored under these names."""

    weight: str
    scale: str
    packed: str
    group_scale: str
    zero: str | None
    bits: int
    group: int
    k: int
    n: int


@dataclass(frozen=True)
class MadeAtLoad(Weight):
    """An initializer that is not written: the runtime makes it, the weight or its scale, when it loads the graph."""

    type: TensorType
    recipe: Int8Recipe

    def materialize(self) -> np.ndarray:
        raise IRError(f"{self.recipe.weight} is made when the graph is loaded")

    @property
    def origin(self) -> str:
        return call("int8", key=self.recipe.packed)


@rule(Linear, contrib=True)
def linear(op: Linear, lo: Lowering) -> str:
    if not lo.int8_rows:
        raise Decline("not the graph for many rows")
    decode, packed, scale, zero = packed_parts(op.w, MATMUL_BITS)
    bits = format_named(decode.format).bits
    n, k = packed.type.shape
    if n * k * bits // 8 < LEAST_BYTES or min(v.weight.nbytes for v in (scale, zero) if v is not None) < INLINE:
        raise Decline("a small weight")
    b, z = stored_codes(lo, decode)
    made = Int8Recipe(f"{packed.name}.int8", f"{packed.name}.int8_scale", b, lo.weight(scale), z, bits, decode.group, k, n)
    w = lo.stored((made, "weight"), made.weight, lambda: MadeAtLoad(TensorType(i8, (k, n)), made))
    w_scale = lo.stored((made, "scale"), made.scale, lambda: MadeAtLoad(TensorType(f32, (n,)), made))
    x = lo(op.x)
    step, middle = lo.const(1 / 127, f32), lo.const(128, u8)
    # A row of zeros divides to NaN, codes to some number, and is multiplied by zero again.
    peak = lo.emit("ReduceMax", lo.emit("Abs", x), lo.const([-1]), keepdims=1)
    coded = lo.emit("QuantizeLinear", lo.emit("Div", x, peak), step, middle, domain=CONTRIB_DOMAIN)
    y = lo.emit("Mul", lo.emit("MatMulIntegerToFloat", coded, w, step, w_scale, middle, domain=CONTRIB_DOMAIN), peak)
    return y if op.bias is None else lo.emit("Add", y, lo(op.bias))
