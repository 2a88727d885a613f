"""Copies of modules."""

from __future__ import annotations

from ingot.ir.module import Module
from ingot.ir.value import Value


def copy_module(module: Module) -> Module:
    """A module of its own that computes the same: values, ops and funcs are new, weight handles are shared."""
    return copied(module)[0]


def copied(module: Module) -> tuple[Module, dict[Value, Value]]:
    """A copy as `copy_module` makes it, and its value for every value of the original."""
    twin = Module(module.name)
    twin.dims, twin.meta, twin.history = dict(module.dims), dict(module.meta), list(module.history)
    mapping: dict[Value, Value] = {c: twin.add_const(c.name, c.weight) for c in module.consts.values()}
    for func in module.funcs.values():
        its = twin.add_func(func.name)
        for param in func.params:
            mapping[param] = its.add_param(param.hint or "", param.type)
        for op in func.ops:
            mapping.update(zip(op.results, its.insert(op.clone(mapping)).results))
        its.set_returns(mapping[v] for v in func.returns)
        its.reuse = {index: mapping[param] for index, param in func.reuse.items()}
    return twin, mapping
