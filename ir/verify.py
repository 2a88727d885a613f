"""The verifier: everything a well-formed module satisfies, checked."""

from __future__ import annotations

import re
from collections import Counter

from ingot.errors import IRError
from ingot.ir.dims import Expr, symbols
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.value import Const, Value

_SYMBOL = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NAME = re.compile(r"[\w.\-]+", re.ASCII)
_RESERVED = frozenset({"true", "false", "none", "inf", "nan", "bool"})


def verify(module: Module) -> None:
    """Raises IRError, naming the value and source line, for the first thing that is not well formed:

    a use before its definition, a result type other than the inferred one, an undeclared symbol, an empty range, a
    weight of another module, wrong use lists, a result reusing a parameter of another type, a name that cannot be printed.
    """
    for name, (least, greatest) in module.dims.items():
        if not _SYMBOL.fullmatch(name) or name in _RESERVED:
            raise IRError(f"{name!r} cannot be the name of a dimension")
        if not 0 <= least <= greatest:
            raise IRError(f"dimension {name} has the empty range {least}..{greatest}")
    for name, const in module.consts.items():
        _check_name(name, const.name, "@")
        if const.type != const.weight.type:
            raise IRError(f"@{const.name} is {const.type}, its weight {const.weight.type}")
        if any(isinstance(d, Expr) or d < 0 for d in const.type.dims):
            raise IRError(f"@{const.name}: {const.type} is no type of a weight, whose dims are fixed")
    uses: Counter[Value] = Counter()
    for name, func in module.funcs.items():
        _check_name(name, func.name, "@")
        if func.module is not module:
            raise IRError(f"func @{name} belongs to another module")
        _verify_func(module, func, uses)
    for value in module.consts.values():
        _check_uses(value, uses)


def _verify_func(module: Module, func: Func, uses: Counter[Value]) -> None:
    defined: set[Value] = set()
    for param in func.params:
        if param.op is not None or param in defined:
            raise IRError(f"{param!r} cannot be a parameter here", where=f"@{func.name}")
        _check_symbols(module, param.type.dims, f"{param!r}", f"@{func.name}")
        defined.add(param)
    for op in [*func.ops, func._return]:
        where = op.loc or f"{op.name or 'return'} in @{func.name}"
        for value in op.operands:
            uses[value] += 1
            if isinstance(value, Const):
                if module.consts.get(value.name) is not value:
                    raise IRError(f"@{value.name} is not a weight of this module", where=where)
            elif value not in defined:
                raise IRError(f"{value!r} is used before it is defined", where=where)
        if op.func is not func:
            raise IRError(f"{op} does not know its func", where=where)
        _verify_op(module, op, where)
        defined.update(op.results)
    for value in defined:
        _check_uses(value, uses)
    for index, param in func.reuse.items():
        if not 0 <= index < len(func.returns) or param not in func.params or func.returns[index].type != param.type:
            raise IRError(f"result {index} cannot reuse {param!r}", where=f"@{func.name}")
    if len(set(func.reuse.values())) < len(func.reuse):
        raise IRError("two results reuse one parameter", where=f"@{func.name}")


def _verify_op(module: Module, op: Op, where: str) -> None:
    inferred = op._infer()
    if inferred != tuple(r.type for r in op.results):
        raise IRError(f"{op}: inferred {', '.join(map(str, inferred))}", where=where)
    for result in op.results:
        if result.op is not op:
            raise IRError(f"{result!r} does not know its op", where=where)
        _check_symbols(module, result.type.dims, f"{result!r}", where)
    for name, value in op.attrs.items():
        _check_symbols(module, value if isinstance(value, tuple) else (value,), f"{op.name}.{name}", where)


def _check_uses(value: Value, uses: Counter[Value]) -> None:
    if value.n_uses != uses[value]:
        raise IRError(f"{value!r} counts {value.n_uses} uses, there are {uses[value]}")


def _check_symbols(module: Module, dims: tuple[object, ...], what: str, where: str) -> None:
    for dim in dims:
        if isinstance(dim, Expr):
            for name in symbols(dim):
                if name not in module.dims:
                    raise IRError(f"{what}: dimension {name} is not declared", where=where)


def _check_name(key: str, name: str, sigil: str) -> None:
    if key != name or not _NAME.fullmatch(name):
        raise IRError(f"{sigil}{name} is no name that can be printed and read again")
