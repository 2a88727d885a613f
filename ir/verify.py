"""The verifier: everything a well-formed module satisfies, checked."""

from __future__ import annotations

from ingot.errors import IRError
from ingot.ir.dims import symbols
from ingot.ir.module import Func, Module
from ingot.ir.value import Const, Value


def verify(module: Module) -> None:
    """Raises IRError, naming the value and source line, for the first thing that is not well formed:

    a use before its definition, a result type other than the inferred one, an undeclared symbol, a weight of another
    module, wrong use lists, a result reusing a parameter of another type.
    """
    for const in module.consts.values():
        if const.type != const.weight.type:
            raise IRError(f"@{const.name} is {const.type}, its weight {const.weight.type}")
    for func in module.funcs.values():
        _verify_func(module, func)


def _verify_func(module: Module, func: Func) -> None:
    defined: set[Value] = set(func.params)
    counts: dict[Value, int] = {}
    for param in func.params:
        _check_symbols(module, param, f"@{func.name}")
    for op in [*func.ops, func._return]:
        where = op.loc or f"{op.name or 'return'} in @{func.name}"
        for value in op.operands:
            counts[value] = counts.get(value, 0) + 1
            if isinstance(value, Const):
                if module.consts.get(value.name) is not value:
                    raise IRError(f"@{value.name} is not a weight of this module", where=where)
            elif value not in defined:
                raise IRError(f"{value!r} is used before it is defined", where=where)
        if op.func is not func:
            raise IRError(f"{op} does not know its func", where=where)
        inferred = op._infer()
        if inferred != tuple(r.type for r in op.results):
            raise IRError(f"{op}: inferred {', '.join(map(str, inferred))}", where=where)
        for result in op.results:
            _check_symbols(module, result, where)
            defined.add(result)
    for value in defined | set(module.consts.values()):
        if value.n_uses != counts.get(value, 0) and not (isinstance(value, Const) and len(module.funcs) > 1):
            raise IRError(f"{value!r} counts {value.n_uses} uses, there are {counts.get(value, 0)}")
    for index, param in func.reuse.items():
        if index >= len(func.returns) or param not in func.params or func.returns[index].type != param.type:
            raise IRError(f"result {index} cannot reuse {param!r}", where=f"@{func.name}")


def _check_symbols(module: Module, value: Value, where: str) -> None:
    for dim in value.type.dims:
        for name in symbols(dim):
            if name not in module.dims:
                raise IRError(f"{value!r}: dimension {name} is not declared", where=where)
