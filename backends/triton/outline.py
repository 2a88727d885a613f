"""A group of ops as a func of its own: what a kernel computes, in the IR, printed above the kernel."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ingot.backends.triton.source import plain
from ingot.ir.dims import symbols
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.text import print_module
from ingot.ir.value import Const, Value


@dataclass(frozen=True)
class Outlined:
    """func: the group's ops over parameters. inputs: the outer values its parameters stand for. outputs: the outer values
    its returns stand for. copies: by outer value, its copy. paged: positions of a page, by parameter that lies in pages."""

    func: Func
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    copies: dict[Value, Value]
    paged: Mapping[Value, int]

    @property
    def text(self) -> str:
        """The func as text, without source lines and the module around it."""
        lines = print_module(self.func.module).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("  func"))
        pages = [f"in pages of {page}: %{value.hint}" for value, page in self.paged.items()]
        return "\n".join([*pages, *(re.sub(r"  loc\(.*\)$", "", line[2:]) for line in lines[start:-1])])


def outline(ops: Sequence[Op], outputs: Sequence[Value], *, name: str, placed: Container[Op],
            paged: Mapping[Value, int]) -> Outlined:
    """The group that computes `outputs` by `ops` (in graph order) and by whatever these need that does not lie in memory.

    placed: ops whose results lie in memory, as weights and parameters do. Other values are drawn in by their producers.
    paged: positions of a page, by value that lies in pages.
    """
    inside: list[Op] = []
    seen: set[Op] = set()
    inputs: dict[Value, None] = {}
    own = set(ops)

    def need(value: Value) -> None:
        if value.op is None or (value.op in placed and value.op not in own):
            inputs[value] = None
        elif value.op not in seen:
            seen.add(value.op)
            for operand in value.op.operands:
                need(operand)
            inside.append(value.op)

    for op in ops:
        for result in op.results:
            need(result)
    module = Module("kernel")
    outer = next((op.func.module for op in ops if op.func is not None), None)
    if outer is not None:
        module.dims.update(outer.dims)
    func = module.add_func(name)
    mapping: dict[Value, Value] = {}
    for value in inputs:
        # A weight goes by the last word of its name: the first ones tell layers apart.
        hint = (value.hint or "x").split(".")[-1] if isinstance(value, Const) else value.hint or "x"
        mapping[value] = func.add_param(plain(hint), value.type)
    for op in inside:
        copy = op.clone(mapping)
        func.insert(copy)
        for result in copy.results:
            result.hint = plain(result.hint or op.name)
        mapping.update(zip(op.results, copy.results))
    func.set_returns(mapping[v] for v in outputs)
    used = {s for op in func.ops for v in (*op.operands, *op.results) for d in v.type.dims for s in symbols(d)}
    module.dims = {name: span for name, span in module.dims.items() if name in used}
    return Outlined(func, tuple(inputs), tuple(outputs), mapping, {mapping[v]: paged[v] for v in inputs if v in paged})
