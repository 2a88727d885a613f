"""Matrix products and table lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.types import TensorType, i64
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


def as_result(lo: Lowering, op: Op, value: Value) -> str:
    """An operand in the element type of the op's result."""
    return lo.cast(lo(value), held(value.type.dtype), held(op.results[0].type.dtype))


@rule(Linear)
def linear(op: Linear, lo: Lowering) -> str:
    return with_bias(lo, op, lo.emit("MatMul", as_result(lo, op, op.x), transposed(lo, op)))


def with_bias(lo: Lowering, op: Linear, product: str) -> str:
    """`product` plus the op's bias, where it has one."""
    return product if op.bias is None else lo.emit("Add", product, as_result(lo, op, op.bias))


def transposed(lo: Lowering, op: Linear) -> str:
    """The weight as [in, out]: stored so, unless the module also uses it as it is (a tied embedding)."""
    w = op.w
    if not isinstance(w, Const) or _used_otherwise(lo, w):
        return lo.emit("Transpose", as_result(lo, op, w), perm=(1, 0))
    type_ = TensorType(held(op.result.type.dtype), w.type.dims[::-1])
    return lo.stored((w.weight, "transposed", type_), f"{w.name}.T",
                     lambda: lo.derive(w.weight, type_, lambda a: np.ascontiguousarray(a.T, type_.dtype.numpy)))


def _used_otherwise(lo: Lowering, const: Const) -> bool:
    mine = lo.module.consts.get(const.name, const)
    return any(not isinstance(user, Linear) or user.w is not mine for user in mine.users)


@rule(MatMul)
def matmul(op: MatMul, lo: Lowering) -> str:
    return lo.emit("MatMul", as_result(lo, op, op.x), as_result(lo, op, op.y))


@rule(Embedding)
def embedding(op: Embedding, lo: Lowering) -> str:
    return lo.emit("Gather", lo(op.w), ids(lo, op), axis=0)


def ids(lo: Lowering, op: Embedding) -> str:
    """The ids as i32 or i64, the types ONNX picks by."""
    dtype = held(op.ids.type.dtype)
    return lo.cast(lo(op.ids), dtype, dtype if dtype.name in ("i32", "i64") else i64)
