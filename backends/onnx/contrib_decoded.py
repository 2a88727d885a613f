"""Linears over formats that no kernel multiplies, nf4 and fp8: their weights are decoded to floats when the graph is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.contrib_quant import kernel_bits, stored_codes
from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.made_at_load import LookedUp, Named, Plane, Steps, scale_values, three_bits, values_of
from ingot.backends.onnx.quant_parts import count_decoded, kernel_block, stored_bytes, work_type
from ingot.backends.onnx.registry import Decline, rule
from ingot.backends.onnx.rules_matmul import as_result, with_bias
from ingot.ir.formats import dequantized, format_named, steps
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Linear, contrib=True)
def linear(op: Linear, lo: Lowering) -> str:
    decode = decodable(op.w)
    if kernel_bits(format_named(decode.format)):
        raise Decline("kernels multiply it as it is")
    if {held(decode.dtype), held(op.result.type.dtype)} != {f32}:
        raise Decline("made in f32 alone")
    w = lo.stored((decode, "floats"), f"{decode.packed.hint}.floats", lambda: floats(lo, decode))
    count_decoded(lo, decode)
    return with_bias(lo, op, lo.emit("MatMul", as_result(lo, op, op.x), w))


def decodable(w: Value) -> Dequantize:
    """The dequantize behind a weight [n, k]. Raises Decline unless all of it is stored, and f32 is what it is decoded to."""
    op = w.op
    if not isinstance(op, Dequantize) or not all(isinstance(v, Const) for v in op.operands) or op.packed.type.rank != 2:
        raise Decline("the weight is not quantised, or with computed scales")
    if work_type(op) != f32:
        raise Decline("its scales are f64")
    return op


def floats(lo: Lowering, decode: Dequantize) -> LookedUp:
    """The weight as f32[k, n], from the codes as kernels take them, where one does, else from rows of bytes."""
    fmt, group = format_named(decode.format), decode.group
    n, k = decode.packed.type.shape
    parts = {name: v for name, v in decode.operand_fields if isinstance(v, Const)}
    more = [name for name in parts if name not in ("packed", "zero")]

    def whole(*arrays: np.ndarray) -> np.ndarray:
        given = dict(zip(parts, arrays))
        step = steps(**{name: given[name] for name in more})
        return np.ascontiguousarray(dequantized(fmt, group, given["packed"], step, given.get("zero")).T)

    def own(const: Const) -> Named:
        name = lo.weight(const)
        return Named(name, lo.initializer(name))

    first, *others = (const.weight for const in parts.values())
    made = lo.derive(first, TensorType(f32, (k, n)), whole, *others)
    packed, planes, zero = _codes(lo, decode)
    scale, coded = parts["scale"], parts["scale"].type.dtype.bits == 8
    by = Steps(k=k, group=group, rows=scale.type.shape[0], scale=_bytes(lo, scale, 8) if coded else own(scale),
               values=scale_values(scale.type.dtype.name) if coded else None, zero=zero,
               zero_table=values_of(f"int{kernel_bits(fmt)}", centred=False) if zero is not None else None,
               **{name: own(parts[name]) for name in more if name != "scale"})
    return LookedUp(TensorType(f32, (k, n)), made, packed, planes, by)


def _codes(lo: Lowering, decode: Dequantize) -> tuple[Named, tuple[Plane, ...], Named | None]:
    """The bytes in which codes are stored, what they stand for, and the bytes of zero points."""
    fmt, packed, centred = format_named(decode.format), decode.packed, decode.zero is None
    assert isinstance(packed, Const)
    n, k = packed.type.shape
    if not kernel_bits(fmt) or not kernel_block(decode.group, k):
        if not centred or fmt.bits == 3:
            raise Decline("zero points, or codes of 3 bits, in groups that no kernel takes")
        stored = _bytes(lo, packed, fmt.bits)
        return stored, (Plane(stored.weight.type.shape[1], values_of(fmt.name)),), None
    name, zero = stored_codes(lo, decode)
    weight = lo.initializer(name)
    stored = weight.packed if isinstance(weight, LookedUp) else Named(name, weight)
    zeros = Named(zero, lo.initializer(zero)) if zero is not None else None
    width = stored.weight.nbytes // n
    if fmt.bits != 3:
        return stored, (Plane(width, values_of(fmt.name, centred=centred)),), zeros
    low, high = three_bits(centred=centred)
    return stored, (Plane(width * 2 // 3, low), Plane(width // 3, high)), zeros


def _bytes(lo: Lowering, const: Const, bits: int) -> Named:
    name = stored_bytes(lo, const, bits)
    return Named(name, lo.initializer(name))
