"""Printing: one op per line, types always, attributes only when not the default, names made unique."""

from __future__ import annotations

import json
from typing import Any

from ingot.ir.dims import Expr
from ingot.ir.module import Func, Module, printable
from ingot.ir.op import Op
from ingot.ir.types import DType
from ingot.ir.value import Const, Value


def print_module(module: Module) -> str:
    """The text of a module; `parse_module` of it prints the same again."""
    head = "# ingot ir v1" + (f", after: {','.join(module.history)}" if module.history else "")
    lines = [head, f"module @{printable(module.name)} {{"]
    lines += [f"  dim {name} in {least}..{most}" for name, (least, most) in module.dims.items()]
    lines += [f"  meta {key} = {attribute(value)}" for key, value in module.meta.items()]
    lines += [f"  const @{c.name} : {c.type} = {c.weight.origin}" for c in module.consts.values()]
    for func in module.funcs.values():
        lines += _func(func)
    return "\n".join([*lines, "}", ""])


def names(func: Func) -> dict[Value, str]:
    """A unique printed name for every parameter and result of a func; hints are kept where they are unique."""
    taken: set[str] = set()
    counters: dict[str, int] = {}
    out: dict[Value, str] = {}
    for value in [*func.params, *(r for op in func.ops for r in op.results)]:
        hint = printable(value.hint or "v").replace("-", "_")
        name = hint
        while name in taken:
            counters[hint] = counters.get(hint, 0) + 1
            name = f"{hint}_{counters[hint]}"
        taken.add(name)
        out[value] = f"%{name}"
    return out


def _func(func: Func) -> list[str]:
    named = names(func)
    params = ", ".join(f"{named[p]}: {p.type}" for p in func.params)
    results = ", ".join(f"{v.type} reuse {named[func.reuse[i]]}" if i in func.reuse else str(v.type)
                        for i, v in enumerate(func.returns))
    lines = [f"  func @{func.name}({params}) -> ({results}) {{"]
    lines += [f"    {print_op(op, named)}" for op in func.ops]
    shown = " " + ", ".join(_value(v, named) for v in func.returns) if func.returns else ""
    return [*lines, f"    return{shown}", "  }"]


def print_op(op: Op, named: dict[Value, str] | None = None, *, with_loc: bool = True) -> str:
    """One op as a line of text; without `named`, values print by their hints; the source line only `with_loc`."""
    args: list[str] = []
    positional = True
    for field in op.fields:
        if field.kind == "attr":
            continue
        value = getattr(op, field.name)
        if field.kind == "variadic":
            args += [_value(v, named) for v in value]
        elif field.kind == "operand" and positional:
            args.append(_value(value, named))
        elif value is None:
            positional = False
        else:
            positional = False
            args.append(f"{field.name}={_value(value, named)}")
    attrs = [f"{f.name} = {attribute(getattr(op, f.name))}" for f in op.fields
             if f.kind == "attr" and not same(getattr(op, f.name), f.default)]
    text = f"{', '.join(_value(r, named) for r in op.results)} = {op.name}({', '.join(args)})"
    if attrs:
        text += f" {{{', '.join(attrs)}}}"
    text += f" : {', '.join(str(r.type) for r in op.results)}"
    return f"{text}  loc({json.dumps(op.loc)})" if op.loc and with_loc else text


def same(a: Any, b: Any) -> bool:
    """Equal and of the same type, so that 1 and 1.0 and True are told apart."""
    return type(a) is type(b) and bool(a == b)


def attribute(value: Any) -> str:
    """An attribute's value as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(attribute, value))}]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int | Expr | DType):
        return str(value)
    raise TypeError(f"no text for attribute {value!r}")


def _value(value: Value, named: dict[Value, str] | None) -> str:
    if isinstance(value, Const):
        return f"@{value.name}"
    return named[value] if named is not None else f"%{value.hint or '?'}"
