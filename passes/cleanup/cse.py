"""cse: common subexpressions computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.text.printer import attribute
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, FileWeight
from ingot.passes.base import Context, Pass

SMALL = 1 << 16
"""Bytes up to which weights held in memory are compared by content."""


@dataclass(frozen=True)
class Cse(Pass):
    """Ops with the same operands and attributes become one, and so do weights with the same numbers.

    Weights are the same when they are one tensor of one file, or small arrays with equal bytes.
    """

    name = "cse"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        sites = share_weights(module)
        return sites + sum(share_ops(func) for func in module.funcs.values())


def share_ops(func: Func) -> int:
    """Let later ops that compute what an earlier one did use its results; returns how many went."""
    seen: dict[Hashable, Op] = {}
    sites = 0
    for op in list(func.ops):
        first = seen.setdefault(op_key(op, id), op)
        if first is op:
            continue
        for old, new in zip(op.results, first.results, strict=True):
            func.replace(old, new)
        sites += 1
    if sites:
        func.drop_dead()
    return sites


def share_weights(module: Module) -> int:
    """Let users of equal weights use one; returns how many went."""
    seen: dict[Hashable, Const] = {}
    gone: list[Const] = []
    for const in module.consts.values():
        key = weight_key(const)
        first = const if key is None else seen.setdefault(key, const)
        if first is const:
            continue
        for func in module.funcs.values():
            func.replace(const, first)
        gone.append(const)
    for const in gone:
        module.remove_const(const)
    return len(gone)


def op_key(op: Op, name: Callable[[Value], int]) -> Hashable:
    """Equal for ops that compute the same of operands with the same `name`."""
    operands = op.map_operands(name)
    if op.commutative:
        operands = tuple(sorted(operands))
    return type(op), operands, tuple((name, attribute(value)) for name, value in op.attrs.items())


def weight_key(const: Const) -> Hashable:
    """Equal for weights with the same numbers; None where that is not known."""
    weight = const.weight
    if isinstance(weight, FileWeight):
        return weight.path, weight.key
    if isinstance(weight, ArrayWeight) and weight.array.nbytes <= SMALL:
        return str(const.type), weight.array.tobytes()
    return None
