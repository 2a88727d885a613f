"""The picture of one stage: the ops of a module as boxes, equal layers that follow each other stacked into one.

A picture is plain data for the page's script. Every distinct drawing is kept once (`Drawings`): layers of one kind share
theirs, and differ only in the lines of text their boxes stand for.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ingot.html.figures import bytes_by_layer
from ingot.html.layout import layered
from ingot.ir.layers import Layer, layers, weight_layers
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.text.printer import attribute, names
from ingot.ir.value import Const, Value
from ingot.report import size

LETTER, PADDING, LINE = 7.4, 9.0, 15.0
"""Width (px) of a letter in a box, room at its sides, and height of a line of text."""
LONGEST = 36
"""Letters in a line of a box."""


@dataclass(frozen=True)
class Node:
    """One box before it is placed. kind: the family of an op, or param, return, input, output, stack."""

    label: str
    note: str
    kind: str

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px."""
        letters = max(len(self.label), len(self.note) * 0.8)
        return max(44.0, letters * LETTER + 2 * PADDING), LINE * (2 if self.note else 1) + PADDING


class Drawings:
    """Drawings by number, each distinct one once."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}

    def add(self, nodes: Sequence[Node], edges: Sequence[tuple[int, int]]) -> int:
        """The number of the drawing of these boxes. Raises ValueError for an edge from a later to an earlier box."""
        labels = [[node.label, node.note, node.kind] for node in nodes]
        key = json.dumps([labels, edges])
        if key not in self._known:
            self._known[key] = len(self.items)
            drawn = layered([node.size for node in nodes], edges)
            self.items.append({
                "labels": labels, "width": round(drawn.width, 1), "tops": [round(y, 1) for y in drawn.tops],
                "boxes": [[round(b.x, 1), b.row, round(b.width, 1), round(b.height, 1)] for b in drawn.boxes],
                "edges": [[e.source, e.target, round(e.start, 1), round(e.end, 1), [round(x, 1) for x in e.lanes]]
                          for e in drawn.edges]})
        return self._known[key]


@dataclass(frozen=True)
class Item:
    """A param, op or return (by its index) of a func: what it takes and gives, and where it stands in the text.

    spot: the line of an op, from 0; `p%x` for the param %x, `r%x` for a return of %x.
    """

    thing: Value | Op | int
    takes: tuple[Value, ...]
    gives: tuple[Value, ...]
    spot: int | str


def main_func(module: Module) -> Func | None:
    """The func a picture shows: forward, else the first."""
    return module.funcs.get("forward") or next(iter(module.funcs.values()), None)


def picture(module: Module, drawings: Drawings) -> dict[str, Any]:
    """The picture of the module's main func.

    drawing: number of the outline. spots: of each of its boxes (null for a stack). stacks: by box, the number of the
    drawing inside and, for each of its equal layers, the name and the spots of the boxes in it. first, last: lines of the
    func's head and of its return.
    """
    func = main_func(module)
    if func is None:
        return {"drawing": drawings.add([], []), "spots": [], "stacks": {}, "first": 0, "last": 0}
    return _Sketch(module, func, drawings).outline()


class _Sketch:
    """A func on its way into a picture. groups: the layer each item is drawn in; inner: (drawing, spots) of every layer."""

    def __init__(self, module: Module, func: Func, drawings: Drawings) -> None:
        self.module, self.func, self.drawings = module, func, drawings
        self.named = weight_layers(module.consts)
        self.layers = layers(module)
        self.items = self.listed()
        self.groups = [self.group(item) for item in self.items]
        members: dict[Layer, list[int]] = defaultdict(list)
        for i, layer in enumerate(self.groups):
            if layer is not None:
                members[layer].append(i)
        self.inner = {layer: self.inside(own) for layer, own in members.items()}

    def listed(self) -> list[Item]:
        named = names(self.func)
        items = [Item(p, (), (p,), f"p{named[p]}") for p in self.func.params]
        items += [Item(op, op.operands, op.results, n) for n, op in enumerate(self.func.ops, self.first + 1)]
        return items + [Item(i, (v,), (), f"r{named.get(v, str(v))}") for i, v in enumerate(self.func.returns)]

    @property
    def first(self) -> int:
        """The line of the func's head in the text."""
        before = takewhile(lambda func: func is not self.func, self.module.funcs.values())
        return (2 + len(self.module.dims) + len(self.module.meta) + len(self.module.consts)
                + sum(len(func.ops) + 3 for func in before))

    def group(self, item: Item) -> Layer | None:
        """The layer an item is drawn in; state that one layer alone reads and writes is drawn with it."""
        if isinstance(item.thing, Op):
            return self.layers.get(item.thing)
        if isinstance(item.thing, int):
            made = item.takes[0].op
            return self.layers.get(made) if made is not None and item.thing in self.func.reuse else None
        users = {self.layers.get(op) for op in item.thing.users}
        return users.pop() if len(users) == 1 and item.thing in self.func.reuse.values() else None

    # --- boxes ----------------------------------------------------------------------------------------------------

    def node(self, item: Item) -> Node:
        if isinstance(item.thing, int):
            return Node(_plain(f"%{item.takes[0].hint}"), str(item.takes[0].type), "return")
        if isinstance(item.thing, Value):
            return Node(_plain(f"%{item.thing.hint}"), str(item.thing.type), "param")
        op, note = item.thing, ""
        family = type(op).__module__.rpartition(".")[2]
        weights = [self.short(v.name) for v in op.operands if isinstance(v, Const)]
        if op.name == "scalar":
            value = op.attrs["value"]
            return Node(f"{value:.4g}" if isinstance(value, float) else attribute(value), "", family)
        if len(weights) > 1:
            note = _shared(weights) or ", ".join(weights)
        elif weights:
            note = weights[0]
        elif family == "layout":
            note = " ".join(f"[{', '.join(map(str, v.type.dims))}]" for v in op.results)
        elif op.name == "cast":
            note = str(op.results[0].type.dtype)
        return Node(op.name, note if len(note) <= LONGEST else f"{note[:LONGEST - 1]}…", family)

    def short(self, weight: str) -> str:
        """`self_attn.q_proj` of `model.layers.0.self_attn.q_proj.weight`: the same in every layer."""
        layer = self.named.get(weight)
        name = _plain(weight) if layer is None else re.sub(rf"^{re.escape(layer.family)}\.?{layer.index}\.", "", weight)
        return re.sub(r"\.weight(?=\.|$)", "", name)

    def inside(self, members: Sequence[int]) -> tuple[int, list[int | str]]:
        """The drawing of a layer and the spots of its boxes; what comes from outside or goes there are boxes too."""
        own = [self.items[i] for i in members]
        made = {v for item in own for v in item.gives}
        coming = list(dict.fromkeys(v for item in own for v in item.takes if v not in made and not isinstance(v, Const)))
        outside = set(self.items) - set(own)
        elsewhere = {v for item in outside for v in item.takes}
        going = [v for item in own for v in item.gives if v in elsewhere]
        nodes = [Node(_plain(f"%{v.hint}") if v.op is None else str(v.type), "", "input") for v in coming]
        nodes += [*map(self.node, own), *(Node(str(v.type), "", "output") for v in going)]
        at = {v: n for n, v in enumerate(coming)} | {v: n for n, item in enumerate(own, len(coming)) for v in item.gives}
        edges = [(at[v], n) for n, item in enumerate(own, len(coming)) for v in item.takes if v in at]
        edges += [(at[v], n) for n, v in enumerate(going, len(coming) + len(own))]
        spot = {v: item.spot for item in self.items for v in item.gives}
        return self.drawings.add(nodes, edges), [*(spot[v] for v in coming), *(i.spot for i in own), *(spot[v] for v in going)]

    # --- the whole ------------------------------------------------------------------------------------------------

    def outline(self) -> dict[str, Any]:
        alone: list[Hashable] = [("item", i) for i in range(len(self.items))]
        single = [item if layer is None else layer for item, layer in zip(alone, self.groups)]
        stacked = [item if layer is None else self.stack_of(layer) for item, layer in zip(alone, self.groups)]
        for keys in (stacked, single, alone):
            edges = self.edges(keys)
            order = _topological(list(dict.fromkeys(keys)), edges)
            if order is not None:
                return self.drawn(keys, order, edges)
        raise AssertionError("a func in SSA form has no cycles")

    def stack_of(self, layer: Layer) -> Layer:
        """The first of the equal layers that end in this one."""
        before = Layer(layer.family, layer.index - 1)
        while before in self.inner and self.inner[before][0] == self.inner[layer][0]:
            layer, before = before, Layer(before.family, before.index - 1)
        return layer

    def edges(self, keys: Sequence[Hashable]) -> list[tuple[Hashable, Hashable]]:
        maker = {v: key for item, key in zip(self.items, keys) for v in item.gives}
        return list(dict.fromkeys((maker[v], key) for item, key in zip(self.items, keys) for v in item.takes
                                  if v in maker and maker[v] != key))

    def drawn(self, keys: Sequence[Hashable], order: Sequence[Hashable], edges: Iterable[tuple[Hashable, Hashable]]
              ) -> dict[str, Any]:
        members: dict[Hashable, dict[Layer, None]] = defaultdict(dict)
        for key, layer in zip(keys, self.groups):
            if isinstance(key, Layer) and layer is not None:
                members[key][layer] = None
        item_of = dict(zip(reversed(keys), reversed(self.items)))
        stored = bytes_by_layer(self.module)
        families = {layer.family for layer in self.inner}
        nodes: list[Node] = []
        stacks: dict[int, dict[str, Any]] = {}
        for n, key in enumerate(order):
            if not isinstance(key, Layer):
                nodes.append(self.node(item_of[key]))
                continue
            of, name = list(members[key]), key.family if len(families) > 1 else key.family.rpartition(".")[2] or "layer"
            title = f"{name.removesuffix('s')} {key.index}" if len(of) == 1 else f"{name} {key.index}–{of[-1].index}"
            ops = sum(layer == key and isinstance(item.thing, Op) for item, layer in zip(self.items, self.groups))
            each = " each" if len(of) > 1 else ""
            nodes.append(Node(title, f"{ops} ops, {size(stored.get(str(key), 0))}{each}", "stack"))
            stacks[n] = {"drawing": self.inner[key][0],
                         "members": [{"name": str(layer), "spots": self.inner[layer][1]} for layer in of]}
        place = {key: n for n, key in enumerate(order)}
        return {"drawing": self.drawings.add(nodes, [(place[u], place[v]) for u, v in edges]), "stacks": stacks,
                "spots": [None if isinstance(key, Layer) else item_of[key].spot for key in order],
                "first": self.first, "last": self.first + len(self.func.ops) + 1}


def _shared(names: Sequence[str]) -> str:
    """The parts that names have in common: `self_attn.qkv` of its `.packed` and `.scale`."""
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".") for name in names)))
    return ".".join(parts[0] for parts in same)


def _plain(name: str) -> str:
    """A name without the numbers that tell layers or equal names apart: `%kc_new` of `%kc3_new`, `%add` of `%add_7`."""
    return re.sub(r"_\d+$", "", re.sub(r"^(%?[A-Za-z]+)\d+(?=$|[_.])", r"\1", name))


def _topological(keys: Sequence[Hashable], edges: Iterable[tuple[Hashable, Hashable]]) -> list[Hashable] | None:
    """The keys so that edges lead onwards, else as they came; None where there is a cycle (Kahn's algorithm)."""
    place = {key: i for i, key in enumerate(keys)}
    waits = [0] * len(keys)
    after: list[list[int]] = [[] for _ in keys]
    for u, v in edges:
        after[place[u]].append(place[v])
        waits[place[v]] += 1
    ready = [i for i, n in enumerate(waits) if not n]
    out: list[Hashable] = []
    while ready:
        i = heapq.heappop(ready)
        out.append(keys[i])
        for j in after[i]:
            waits[j] -= 1
            if not waits[j]:
                heapq.heappush(ready, j)
    return out if len(out) == len(keys) else None
