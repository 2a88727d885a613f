"""What changed between two modules: one `Change` per op, weight, parameter, return, dim and fact that differs.

Ops are compared as `ingot.ir.align` pairs them, so names of values do not matter; source lines (`loc`), the order of
independent ops and the list of passes do not either. Numbers of weights are not in dumps: a weight is known by its type and
its origin alone.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

from ingot.ir.align import Alignment, align, slots
from ingot.ir.layers import layers
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.text.printer import attribute, names, print_op, same
from ingot.ir.value import Const, Value
from ingot.passes.pipeline import measure

Kind = Literal["removed", "added", "changed"]
SIGNS: dict[str, str] = {"removed": "-", "added": "+", "changed": "~"}


@dataclass(frozen=True)
class Change:
    """One difference.

    subject: func, op, type (results of a type that follows from another change), weight, param, return, dim or meta.
    text: the thing as it stands in the dump that has it; of a changed op its results. details: what changed in it,
    `eps: 1e-05 -> 1e-06`. instead: of a removed op, the values its users take now; of an added op, the values its users took
    before and that are still there. layer: of an op, where it is in one.
    """

    kind: Kind
    subject: str
    text: str
    details: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    layer: str | None = None
    count: int = 1

    @property
    def line(self) -> str:
        """The change on one line, with its sign."""
        text = f"{SIGNS[self.kind]} {self.text}"
        if self.details:
            text += f"  {', '.join(self.details)}"
        if self.instead:
            text += f"  {'=>' if self.kind == 'removed' else '<='} {', '.join(self.instead)}"
        return text


@dataclass(frozen=True)
class Totals:
    """ops, parameters (elements) and bytes of a module, as in receipts; name: the module's, or where it was read from."""

    name: str
    ops: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Fold:
    """Changes that are equal but for numbers in names. layers: how many layers they are in, when each is in one, else 0."""

    first: Change
    count: int
    layers: int

    @property
    def times(self) -> str:
        """`x 30 layers`, `x 30 layers, 2 each`, `x 61`, or nothing for a single change."""
        if self.count == 1:
            return ""
        if self.layers < 2 or self.count % self.layers:
            return f"x {self.count}"
        return f"x {self.layers} layers" + (f", {self.count // self.layers} each" if self.count > self.layers else "")


@dataclass(frozen=True)
class Diff:
    """All changes from one module to another. renamed: parameters and weights that only have another name, (old, new)."""

    before: Totals
    after: Totals
    changes: tuple[Change, ...]
    renamed: tuple[tuple[str, str], ...]

    @property
    def equal(self) -> bool:
        """Whether the modules are the same but for names."""
        return not self.changes

    def folded(self) -> list[Fold]:
        """The changes with those of equal layers as one, each at the place of its first."""
        groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
        for change in self.changes:
            groups[change.subject, _without_numbers(change.line)].append(change)
        return [Fold(g[0], sum(c.count for c in g), len({c.layer for c in g}) if all(c.layer for c in g) else 0)
                for g in groups.values()]

    def unfolded(self) -> list[Fold]:
        """Every change by itself."""
        return [Fold(change, change.count, 0) for change in self.changes]

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, "before": asdict(self.before), "after": asdict(self.after),
                "changes": [asdict(c) for c in self.changes], "renamed": [list(pair) for pair in self.renamed]}


def diff(before: Module | Path | str, after: Module | Path | str) -> Diff:
    """The changes from one module to another; each a Module, a dump, an artifact (its last stage), or `ARTIFACT@STAGE`.

    Raises ParseError for a text that is not a dump, ArtifactError for a stage that is not there.
    """
    from ingot.dumps import read_module

    a, b = (m if isinstance(m, Module) else read_module(m) for m in (before, after))
    work = _Comparison(align(a, b))
    changes = [*_funcs(a, b), *(c for f, g in work.funcs for c in work.func(f, g)), *work.types(), *work.weights(),
               *_facts("dim", {k: f"{low}..{high}" for k, (low, high) in a.dims.items()},
                       {k: f"{low}..{high}" for k, (low, high) in b.dims.items()}),
               *_facts("meta", {k: attribute(v) for k, v in a.meta.items()}, {k: attribute(v) for k, v in b.meta.items()})]
    old, new = (Totals(m.name if m is given else str(given), *measure(m)) for m, given in ((a, before), (b, after)))
    return Diff(old, new, tuple(changes), tuple(work.renamed()))


class _Comparison:
    """The changes within the parts that an alignment pairs."""

    def __init__(self, alignment: Alignment) -> None:
        self.pairs = alignment
        a, b = self.modules = alignment.before, alignment.after
        self.funcs = [(f, b.funcs[name]) for name, f in a.funcs.items() if name in b.funcs]
        self.layers = {op: str(layer) for m in self.modules for op, layer in layers(m).items()}
        self.names: dict[Value, str] = {c: f"@{c.name}" for m in self.modules for c in m.consts.values()}
        for m in self.modules:
            for func in m.funcs.values():
                self.names.update(names(func))
        self.taken = set(alignment.ops.values())
        self.partners = set(alignment.values.values())
        self.instead: dict[Value, dict[str, None]] = defaultdict(dict)

    def func(self, f: Func, g: Func) -> Iterator[Change]:
        changed = {self.pairs.ops[op]: found for op in f.ops if op in self.pairs.ops and (found := self.details(op))}
        returns = list(self.returns(f, g))
        for op in self.in_order(f, g):
            if op in changed:
                target = ", ".join(self.names[v] for v in op.results)
                yield Change("changed", "op", f"{target} = {op.name}(...)", tuple(changed[op]), layer=self.layers.get(op))
            elif op.func is f and op not in self.pairs.ops:
                yield self.line("removed", op)
            elif op.func is g and op not in self.taken:
                yield self.line("added", op)
        yield from self.params(f, g)
        yield from returns

    def line(self, kind: Kind, op: Op) -> Change:
        others = dict.fromkeys(name for v in op.results for name in self.instead[v])
        return Change(kind, "op", print_op(op, self.names, with_loc=False), (), tuple(others), self.layers.get(op))

    def details(self, a: Op) -> list[str]:
        """What differs in a pair of ops: attributes, and operands that no added or removed op accounts for."""
        b = self.pairs.ops[a]
        out = [f"{key}: {attribute(old)} -> {attribute(b.attrs[key])}" for key, old in a.attrs.items()
               if not same(old, b.attrs[key])]
        mine, its = dict(slots(a)), dict(slots(b))
        for slot in dict.fromkeys([*mine, *its]):
            old, new = mine.get(slot), its.get(slot)
            if not self.accounted(old, new):
                shown = "none" if old is None else self.names[old], "none" if new is None else self.names[new]
                out.append(f"{_place(slot)}: {shown[0]} -> {shown[1]}")
        return out

    def accounted(self, old: Value | None, new: Value | None) -> bool:
        """Whether an operand stayed, or is shown by the line of the op that was removed before it or added for it."""
        if old is None or new is None:
            return False
        gone = old.op is not None and old.op not in self.pairs.ops
        come = new.op is not None and new.op not in self.taken
        if gone:
            self.instead[old][self.names[new]] = None
        elif come:
            self.instead[new][self.names[old]] = None
        return gone or come or self.pairs.same(old, new)

    def in_order(self, f: Func, g: Func) -> Iterator[Op]:
        """Ops of both funcs as a reader expects them: those of the first before those of the second between two pairs."""
        place = {op: i for i, op in enumerate(g.ops)}
        paired = [(i, place[self.pairs.ops[op]]) for i, op in enumerate(f.ops) if op in self.pairs.ops]
        i = j = 0
        for k in _rising([b for _, b in paired]):
            yield from f.ops[i:paired[k][0]]
            yield from g.ops[j:paired[k][1] + 1]
            i, j = paired[k][0] + 1, paired[k][1] + 1
        yield from f.ops[i:]
        yield from g.ops[j:]

    def params(self, f: Func, g: Func) -> Iterator[Change]:
        for p in f.params:
            its = self.pairs.values.get(p)
            if its is None:
                yield Change("removed", "param", f"{self.names[p]}: {p.type}")
            elif its.type != p.type:
                yield Change("changed", "param", self.names[its], (f"type: {p.type} -> {its.type}",))
        for p in g.params:
            if p not in self.partners:
                yield Change("added", "param", f"{self.names[p]}: {p.type}")

    def returns(self, f: Func, g: Func) -> Iterator[Change]:
        mine = [self.pairs.values.get(v, v) for v in f.returns]
        for _, i, i2, j, j2 in SequenceMatcher(None, mine, g.returns, autojunk=False).get_opcodes():
            both = min(i2 - i, j2 - j)
            for n in range(both):
                yield from self.returned(f, g, i + n, j + n)
            for n in range(i + both, i2):
                yield Change("removed", "return", self.result(f, n))
            for n in range(j + both, j2):
                yield Change("added", "return", self.result(g, n))

    def result(self, func: Func, index: int) -> str:
        value = func.returns[index]
        into = f" reuse {self.names[func.reuse[index]]}" if index in func.reuse else ""
        return f"{self.names[value]}: {value.type}{into}"

    def returned(self, f: Func, g: Func, i: int, j: int) -> Iterator[Change]:
        old, new = f.returns[i], g.returns[j]
        details = [] if self.accounted(old, new) else [f"value: {self.names[old]} -> {self.names[new]}"]
        into, onto = f.reuse.get(i), g.reuse.get(j)
        if (into is None) != (onto is None) or (into is not None and self.pairs.values.get(into) is not onto):
            shown = ["none" if v is None else self.names[v] for v in (into, onto)]
            details.append(f"reuse: {shown[0]} -> {shown[1]}")
        if details:
            yield Change("changed", "return", f"result {j}", tuple(details))

    def types(self) -> Iterator[Change]:
        """How many results have another type for want of another cause than a change before them."""
        found = Counter((x.type, y.type) for a, b in self.pairs.ops.items() for x, y in zip(a.results, b.results)
                        if x.type != y.type)
        for (old, new), count in found.most_common():
            yield Change("changed", "type", f"{old} -> {new}", count=count)

    def weights(self) -> Iterator[Change]:
        a, b = self.modules
        for const in a.consts.values():
            its = self.pairs.values.get(const)
            if not isinstance(its, Const):
                yield Change("removed", "weight", f"@{const.name} : {const.type}")
                continue
            details = [f"type: {const.type} -> {its.type}"] if const.type != its.type else []
            if const.weight.origin != its.weight.origin:
                details.append(f"origin: {const.weight.origin} -> {its.weight.origin}")
            if details:
                yield Change("changed", "weight", f"@{its.name}",
                             (*details, *([f"name: @{const.name}"] if const.name != its.name else [])))
        for const in b.consts.values():
            if const not in self.partners:
                yield Change("added", "weight", f"@{const.name} : {const.type} = {const.weight.origin}")

    def renamed(self) -> Iterator[tuple[str, str]]:
        """Parameters and weights that have another name and are otherwise the same."""
        for old, new in self.pairs.values.items():
            if old.op is None and old.type == new.type and self.names[old] != self.names[new] and not (
                    isinstance(old, Const) and isinstance(new, Const) and old.weight.origin != new.weight.origin):
                yield self.names[old], self.names[new]


def _funcs(a: Module, b: Module) -> Iterator[Change]:
    for kind, mine, its in (("removed", a, b), ("added", b, a)):
        for name, func in mine.funcs.items():
            if name not in its.funcs:
                yield Change("removed" if kind == "removed" else "added", "func", f"func @{name} of {len(func.ops)} ops")


def _facts(subject: str, old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    for key, value in old.items():
        if key not in new:
            yield Change("removed", subject, f"{key} = {value}")
        elif new[key] != value:
            yield Change("changed", subject, key, (f"{value} -> {new[key]}",))
    for key, value in new.items():
        if key not in old:
            yield Change("added", subject, f"{key} = {value}")


def _place(slot: Any) -> str:
    return f"{slot[0]}[{slot[1]}]" if isinstance(slot, tuple) else str(slot)


def _rising(numbers: Sequence[int]) -> list[int]:
    """Indices of a longest rising subsequence (patience sorting: Fredman, "On computing the length of longest increasing
    subsequences", Discrete Mathematics 11, 1975)."""
    tops: list[int] = []
    piles: list[int] = []
    below: list[int] = []
    for i, number in enumerate(numbers):
        at = bisect.bisect_left(tops, number)
        tops[at:at + 1] = [number]
        piles[at:at + 1] = [i]
        below.append(piles[at - 1] if at else -1)
    out: list[int] = []
    i = piles[-1] if piles else -1
    while i >= 0:
        out.append(i)
        i = below[i]
    return out[::-1]


def _without_numbers(line: str) -> str:
    """A line with the first number of every name and quoted text blotted out: equal for the same change in two layers."""
    line = re.sub(r"([%@][\w.\-]*?)_\d+(?![\w.\-])", r"\1", line)
    return re.sub(r'[%@][\w.\-]+|"[^"]*"', lambda name: re.sub(r"\d+", "#", name[0], count=1), line)
