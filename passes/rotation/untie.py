"""Weights that are the token embedding and the output projection at once, taken apart."""

from __future__ import annotations

from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value


def untie(module: Module, value: Value, name: str | None = None) -> Value:
    """A value of its own, with the same numbers, for the users of a weight that look no rows of it up.

    value: a weight, or the result of a `dequantize` of weights. name: of the new weight.
    """
    users = [user for user in value.users if not isinstance(user, Embedding)]
    stem = name or f"{label(value)}.output"
    if isinstance(value, Const):
        twin: Value = module.add_const(stem, value.weight)
    else:
        op = value.op
        assert isinstance(op, Dequantize), "only weights and dequantised weights are tied"
        assert op.func is not None
        copies: dict[Value, Value] = {v: module.add_const(f"{stem}.{part}", v.weight) for part, v in op.operand_fields
                                      if isinstance(v, Const)}
        twin = op.func.insert(op.clone(copies), after=op).result
    for user in users:
        _rewire(user, value, twin)
    return twin


def label(value: Value) -> str:
    """What a weight is called, quantised or not."""
    if isinstance(value, Const):
        return value.name
    packed = value.op.packed if isinstance(value.op, Dequantize) else None
    return packed.name.removesuffix(".packed") if isinstance(packed, Const) else str(value.hint)


def _rewire(user: Op, old: Value, new: Value) -> None:
    """Let an op, or the return of a func, take `new` where it takes `old`."""
    func = user.func
    assert func is not None
    if user not in func.ops:
        func.set_returns(new if value is old else value for value in func.returns)
        return
    for field, value in user.operand_fields:
        if isinstance(value, tuple):
            func.set_operand(user, field, tuple(new if v is old else v for v in value))
        elif value is old:
            func.set_operand(user, field, new)
