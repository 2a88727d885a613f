"""The repeated layers of a model, read from the names of its weights and spread along the data flow."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.value import Const

_PLAIN = re.compile(r"(?:(.*?)\.)??(\d+)(?:\.|$)")
_JOINED = re.compile(r"((?:[\w\-]+\.)*?[A-Za-z_\-]+)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Layer:
    """One of a family of layers: `model.layers` and 3 for weights named `model.layers.3.mlp.up_proj.weight`."""

    family: str
    index: int

    def __str__(self) -> str:
        return f"{self.family}.{self.index}" if self.family else str(self.index)


def weight_layers(names: Iterable[str]) -> dict[str, Layer]:
    """The layer of every weight that belongs to one.

    A layer is numbered by the first part of the name that is a number (`h.3.attn`), in models without such names by the
    first that ends in one (`l3.attn`). A family has two layers or more.
    """
    names = list(names)
    for pattern in (_PLAIN, _JOINED):
        found = {name: Layer(hit[1] or "", int(hit[2])) for name in names if (hit := pattern.match(name))}
        indices: dict[str, set[int]] = defaultdict(set)
        for layer in found.values():
            indices[layer.family].add(layer.index)
        if kept := {name: layer for name, layer in found.items() if len(indices[layer.family]) > 1}:
            return kept
    return {}


def layers(module: Module) -> dict[Op, Layer]:
    """The layer of every op that belongs to one.

    An op with a weight of a layer is in that layer. Others lie between the latest layer they depend on and the first that
    depends on them: where these differ, an op that takes the former's result directly still belongs to it (the sum that
    ends a layer), and what follows to the latter. What depends on no layer is in the one that alone uses it, if any.
    """
    named = weight_layers(module.consts)
    out: dict[Op, Layer] = {}
    for func in module.funcs.values():
        out.update(_spread(func, named))
    return out


def _spread(func: Func, named: dict[str, Layer]) -> dict[Op, Layer]:
    weights = {op: [named.get(c.name) for c in _weights(op)] for op in func.ops}
    own = {op: layer for op, found in weights.items() for layer in found if layer is not None}
    order = {layer: rank for rank, layer in enumerate(dict.fromkeys(own.values()))}
    latest: dict[Op, Layer] = {}
    for op in func.ops:
        before = [latest[v.op] for v in op.operands if v.op is not None and v.op in latest]
        if op in own or before:
            latest[op] = own.get(op) or max(before, key=order.__getitem__)
    first: dict[Op, Layer] = {}
    for op in reversed(func.ops):
        after = [first[user] for v in op.results for user in v.users if user in first]
        if op in own or after:
            first[op] = own.get(op) or min(after, key=order.__getitem__)
    out: dict[Op, Layer] = {}
    for op in func.ops:
        low, high = latest.get(op), first.get(op)
        sure = any(v.op is not None and latest.get(v.op) == low == first.get(v.op) for v in op.operands)
        if low is not None and (low == high or (sure and (high is not None or not weights[op]))):
            out[op] = low
        elif low is not None and high is not None:
            out[op] = high
    for op in reversed(func.ops):
        users = {out.get(user) for v in op.results for user in v.users}
        if op not in out and not weights[op] and len(users) == 1 and (layer := users.pop()) is not None:
            out[op] = layer
    return out


def _weights(op: Op) -> list[Const]:
    """The weights an op uses, also through ops that take nothing but weights (`dequantize`)."""
    out: list[Const] = []
    for value in op.operands:
        if isinstance(value, Const):
            out.append(value)
        elif value.op is not None and all(isinstance(v, Const) for v in value.op.operands):
            out += [v for v in value.op.operands if isinstance(v, Const)]
    return out
