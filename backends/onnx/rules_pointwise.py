"""Elementwise ops: one ONNX operator where there is one, else their scalar expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.dtypes import held, onnx_dtype, worked
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.term import ONNX, Term
from ingot.ir.op import Op
from ingot.ir.ops.pointwise import (
    Cast,
    Clamp,
    Elu,
    Gelu,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Pointwise,
    Relu,
    Where,
)
from ingot.ir.types import DType, TensorType, bool_, f8e8m0, f32, promote
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Pointwise)
def pointwise(op: Pointwise, lo: Lowering) -> str:
    common = _common(op)
    args = [Term(lo, lo(v), held(v.type.dtype)) for v in op.operands]
    if isinstance(op, Where):
        args = [args[0].cast(bool_), args[1].cast(common), args[2].cast(common)]
    else:
        args = [a.cast(common) for a in args]
    y: Term = op.scalar(ONNX, *args)
    return y.cast(held(op.result.type.dtype)).name


def _common(op: Pointwise) -> DType:
    """The type all operands are brought to: the result's, or for a comparison the one arithmetic would give."""
    if not op.predicate:
        dtype = op.result.type.dtype
    elif all(v.type.dtype == bool_ for v in op.operands) and op.name in ("and", "or", "not"):
        return bool_
    else:
        total = op.operands[0].type
        for value in op.operands[1:]:
            total = TensorType(promote(total, value.type), max(total.dims, value.type.dims, key=len))
        dtype = total.dtype
    return worked(dtype)


@rule(Relu, Gelu, HardSwish, HardSigmoid, LeakyRelu, Elu)
def activation(op: Op, lo: Lowering) -> str | None:
    x: Value = op.operands[0]
    if not x.type.dtype.is_float or held(x.type.dtype).bits == 8:
        return None
    if held(x.type.dtype) != f32 and not isinstance(op, Relu):
        return None
    match op:
        case Relu():
            return lo.emit("Relu", lo(x))
        case Gelu(approximate="none" | "tanh" as approximate):
            return lo.emit("Gelu", lo(x), approximate=approximate)
        case HardSwish():
            return lo.emit("HardSwish", lo(x))
        case HardSigmoid():
            return lo.emit("HardSigmoid", lo(x), alpha=1 / 6, beta=0.5)
        case LeakyRelu(slope=slope):
            return lo.emit("LeakyRelu", lo(x), alpha=float(slope))
        case Elu(alpha=alpha):
            return lo.emit("Elu", lo(x), alpha=float(alpha))
    return None


@rule(Clamp)
def clamp(op: Clamp, lo: Lowering) -> str | None:
    dtype = held(op.x.type.dtype)
    if worked(dtype) != dtype or (dtype.is_integer and not _whole(op)):
        return None
    limits = [None if limit is None else lo.const(limit, dtype) for limit in (op.least, op.greatest)]
    return lo.emit("Clip", lo(op.x), *limits)


def _whole(op: Clamp) -> bool:
    return all(limit is None or float(limit).is_integer() for limit in (op.least, op.greatest))


@rule(Cast)
def cast(op: Cast, lo: Lowering) -> str:
    source, target = held(op.x.type.dtype), held(op.dtype)
    name = lo(op.x)
    if target == bool_ and source.is_float:
        return lo.emit("Not", lo.emit("Equal", name, lo.const(0, source)))
    if target == f8e8m0:
        lo.require(24)
        return lo.emit("Cast", name, to=onnx_dtype(target), round_mode="nearest")
    return name if source == target else lo.emit("Cast", name, to=onnx_dtype(target))
