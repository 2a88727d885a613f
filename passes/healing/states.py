"""Values of two modules that mean the same: the sums that results of linears go into, found by the names of their weights."""

from __future__ import annotations

from ingot.ir.module import Func, Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add
from ingot.ir.value import Const, Value
from ingot.passes.rotation.untie import label


def shared_states(student: Module, teacher: Module) -> list[tuple[Value, Value]]:
    """The residual sums of both main funcs that belong together, in the student's order: (the student's, the teacher's).

    Those of layers that are gone, or of another width, are left out.
    """
    theirs = residual_sums(teacher.main)
    return [(value, theirs[name]) for name, value in residual_sums(student.main).items()
            if name in theirs and theirs[name].type.dims == value.type.dims]


def residual_sums(func: Func) -> dict[str, Value]:
    """The sums that results of linears go into, directly or through a norm, by the name of the linear's weight."""
    found: dict[str, Value] = {}
    for op in func.ops:
        total = _sum(op.result) if isinstance(op, Linear) else None
        if isinstance(op, Linear) and total is not None:
            found[label(op.w)] = total
    return found


def _sum(result: Value) -> Value | None:
    if len(result.users) != 1:
        return None
    match result.users[0]:
        case RmsNorm() | LayerNorm() as op:
            return _sum(op.result)
        case Add() as op if op.x.type == op.y.type and not isinstance(op.x, Const) and not isinstance(op.y, Const):
            return op.result
        case SkipRmsNorm() | SkipLayerNorm() as op:
            return op.results[1]
    return None
