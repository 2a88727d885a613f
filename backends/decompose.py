"""One op written out in simpler ones, for a backend that has no rule for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.value import Const, Value

Build = Callable[[Any, Builder], Value | tuple[Value, ...] | None]


def decomposed(op: Op, how: Build | None = None) -> tuple[Func, tuple[Value, ...]] | None:
    """`op.decompose` as a func of its own, with the values of the op's graph that stand for the func's parameters.

    how: what to build from (a copy of) the op instead. Weights keep their names and handles; the op's graph is not
    touched. None when the op is primitive.
    """
    if how is None and type(op).decompose is Op.decompose:
        return None
    module = Module(op.name)
    if op.func is not None:
        module.dims.update(op.func.module.dims)
    func = module.add_func("forward")
    mapping: dict[Value, Value] = {}
    outer: list[Value] = []
    for value in op.operands:
        if value in mapping:
            continue
        if isinstance(value, Const):
            mapping[value] = module.add_const(value.name, value.weight)
        else:
            mapping[value] = func.add_param(value.hint or "x", value.type)
            outer.append(value)
    twin, b = op.clone(mapping), Builder(func, loc=op.loc)
    results = twin.decompose(b) if how is None else how(twin, b)
    if results is None:
        return None
    func.set_returns(results if isinstance(results, tuple) else (results,))
    return func, tuple(outer)
