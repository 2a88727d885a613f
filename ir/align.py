"""Which ops and values of two modules correspond, found from how they are connected and not from their names.

Equal expressions are paired first; from there, and from weights, parameters and returns, pairs spread along the edges of the
graph: what stands in the same operand of a pair, or uses it in the same way, is a pair as well. So a change early in a model
leaves everything below it paired. The two phases (equal parts, then growth around them) are those of Falleri et al.,
"Fine-grained and accurate source code differencing" (ASE 2014, section 3), on a graph in place of a tree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ingot.ir.module import Module
from ingot.ir.op import Op, Return
from ingot.ir.text.printer import attribute
from ingot.ir.value import Const, Value

T = TypeVar("T")
Key = Callable[[T], Hashable]
"""Things with the same key may be a pair; None: this one may not."""


@dataclass(frozen=True)
class Alignment:
    """A partial one-to-one map from one module (`before`) to another (`after`).

    ops: pairs are of one class; their attributes and operands may differ. values: parameters, weights and results of paired
    ops. classes: values of either module with the same number are the same expression over paired parameters and weights.
    """

    before: Module
    after: Module
    ops: Mapping[Op, Op]
    values: Mapping[Value, Value]
    classes: Mapping[Value, int]

    def same(self, a: Value, b: Value) -> bool:
        """Whether value `a` of the first module and `b` of the second stand for each other."""
        return self.values.get(a) is b or self.classes[a] == self.classes[b]


def align(before: Module, after: Module) -> Alignment:
    """Pair the funcs of two modules by name, and what is in them by structure. Neither module is changed."""
    work = _Aligner(before, after)
    work.run()
    return Alignment(before, after, work.ops, work.values, work.classes)


def slots(op: Op) -> Iterator[tuple[Hashable, Value]]:
    """The operands of an op, each with its place: a field's name, or (name, index) in a variadic field."""
    for name, value in op.operand_fields:
        if isinstance(value, tuple):
            yield from (((name, i), v) for i, v in enumerate(value))
        elif value is not None:
            yield name, value


UNIQUE, IN_ORDER, OTHER_ATTRS = range(3)
"""How sure a pair made by spreading is: the only candidates; one of as many candidates on both sides; attributes differ."""


class _Aligner:
    """The pairs found so far. `pending[n]` holds the pairs of values from which certainty `n` has yet to spread."""

    def __init__(self, before: Module, after: Module) -> None:
        self.sides = (before, after)
        self.funcs = [(f, after.funcs[name]) for name, f in before.funcs.items() if name in after.funcs]
        self.ops: dict[Op, Op] = {}
        self.values: dict[Value, Value] = {}
        self.taken: set[Op | Value] = set()
        self.classes: dict[Value, int] = {}
        self.shape: dict[Op, Hashable] = {op: (op.name, *map(attribute, op.attrs.values())) for m in self.sides for op in m.ops}
        self.pending: tuple[dict[tuple[Value, Value], None], ...] = ({}, {}, {})

    def run(self) -> None:
        self.pair_consts()
        for f, g in self.funcs:
            self.pair_values(f.params, g.params, lambda p: p.hint)
            self.pair_values(f.params, g.params, lambda p: p.type)
        self.number()
        self.pair_ops(self.expression)
        for f, g in self.funcs:
            for a, b in zip(f.returns, g.returns):
                self.meet(a, b, OTHER_ATTRS)
        self.spread(IN_ORDER)
        self.pair_ops(self.expression, all_of_them=False)
        self.spread(OTHER_ATTRS)
        for around in (self.surroundings, self.operands, self.uses):
            self.pair_ops(around)
            self.spread(OTHER_ATTRS)
        for op, its in list(self.ops.items()):
            for va, vb in _same_slots(op, its):
                if isinstance(va, Const) and isinstance(vb, Const):
                    self.pair(va, vb)

    # --- pairs by key ---------------------------------------------------------------------------------------------

    def pair_consts(self) -> None:
        """Weights by all that is known of them, then by what they hold, then by name."""
        keys: tuple[Key[Const], ...] = (lambda c: (c.name, c.weight.origin, c.type), lambda c: (c.weight.origin, c.type),
                                        lambda c: c.weight.origin, lambda c: c.name)
        for key in keys:
            mine, its = ([c for c in m.consts.values() if not self.is_paired(c)] for m in self.sides)
            for a, b in _paired(mine, its, key):
                if len(a) == len(b) == 1:
                    self.pair(a[0], b[0])

    def pair_values(self, mine: Iterable[Value], its: Iterable[Value], key: Key[Value]) -> None:
        mine, its = ([v for v in side if not self.is_paired(v)] for side in (mine, its))
        for a, b in _paired(mine, its, key):
            if len(a) == len(b):
                for va, vb in zip(a, b):
                    self.pair(va, vb)

    def pair_ops(self, key: Key[Op], *, all_of_them: bool = True) -> None:
        """Pair unpaired ops with the same key in order, where there are as many on both sides (or also where not)."""
        for f, g in self.funcs:
            mine, its = ([op for op in side.ops if not self.is_paired(op)] for side in (f, g))
            for a, b in _paired(mine, its, key):
                if len(a) == len(b) or not all_of_them:
                    for x, y in zip(a, b):
                        self.pair_op(x, y)

    def is_paired(self, thing: Op | Value) -> bool:
        return thing in self.ops or thing in self.values or thing in self.taken

    def pair(self, a: Value, b: Value) -> bool:
        """Make a pair of two values, unless one has another partner."""
        if self.is_paired(a) or self.is_paired(b):
            return False
        self.values[a] = b
        self.taken.add(b)
        for queue in self.pending:
            queue[a, b] = None
        return True

    def pair_op(self, a: Op, b: Op) -> bool:
        """Make a pair of two ops and of their results, unless something speaks against it."""
        if a.name != b.name or self.is_paired(a) or self.is_paired(b) or self.conflict(a, b):
            return False
        self.ops[a] = b
        self.taken.add(b)
        for x, y in zip(a.results, b.results):
            self.pair(x, y)
        for x in a.operands:  # fewer candidates are left around them now
            if x in self.values:
                for queue in self.pending:
                    queue[x, self.values[x]] = None
        for x, y in _same_slots(a, b):
            self.meet(x, y, UNIQUE)
            self.pending[OTHER_ATTRS][x, y] = None
        return True

    def conflict(self, a: Op, b: Op) -> bool:
        """Whether the two use weights that have other partners."""
        return not a.commutative and any(isinstance(x, Const) and isinstance(y, Const) and self.values.get(x) is not y
                                         and (self.is_paired(x) or self.is_paired(y)) for x, y in _same_slots(a, b))

    # --- spreading ------------------------------------------------------------------------------------------------

    def spread(self, most: int) -> None:
        """Follow the edges from the pairs until nothing new is found, surest first."""
        while True:
            level = next((n for n in range(most + 1) if self.pending[n]), None)
            if level is None:
                return
            a, b = next(iter(self.pending[level]))
            del self.pending[level][a, b]
            if self.values.get(a) is not b:
                self.meet(a, b, level)
                continue
            mine, its = (self.users(v, by_attrs=level != OTHER_ATTRS) for v in (a, b))
            for x, y in _paired(mine, its, lambda user: user[1]):
                if len(x) == len(y) and (level == IN_ORDER or len(x) == 1):
                    for (p, _), (q, _) in zip(x, y):
                        self.pair_op(p, q)

    def meet(self, a: Value, b: Value, level: int) -> None:
        """Two values in the same place: what makes them is a pair, if it is the same op."""
        if a.op is not None and b.op is not None and a.op.results.index(a) == b.op.results.index(b) and (
                level == OTHER_ATTRS or self.shape[a.op] == self.shape[b.op]):
            self.pair_op(a.op, b.op)

    def users(self, value: Value, *, by_attrs: bool) -> list[tuple[Op, Hashable]]:
        """Unpaired users of a value, each with what it is and where it takes the value."""
        return [(op, (self.shape[op] if by_attrs else op.name, op.commutative or slot))
                for op in value.users if not isinstance(op, Return) and not self.is_paired(op)
                for slot, used in slots(op) if used is value]

    # --- keys -----------------------------------------------------------------------------------------------------

    def number(self) -> None:
        """The class of every value: equal for equal ops over operands of equal classes."""
        known: dict[Hashable, int] = defaultdict(lambda: len(known))
        for module in self.sides:
            for value in [*module.consts.values(), *(p for f in module.funcs.values() for p in f.params)]:
                self.classes[value] = known["given", self.values.get(value, value)]
            for op in module.ops:
                made = self.shape[op], tuple((slot, self.classes[v]) for slot, v in slots(op))
                for i, value in enumerate(op.results):
                    self.classes[value] = known[i, made]

    def expression(self, op: Op) -> Hashable:
        return tuple(self.classes[v] for v in op.results) or None

    def surroundings(self, op: Op) -> Hashable:
        return self.operands(op), self.uses(op)

    def operands(self, op: Op) -> Hashable:
        around = tuple((slot, self.seen(v)) for slot, v in slots(op))
        return (self.shape[op], around) if around else None

    def uses(self, op: Op) -> Hashable:
        around = tuple(tuple(sorted((str(self.shape.get(user)), str(slot)) for user in v.users for slot, used in slots(user)
                                    if used is v)) for v in op.results)
        return self.shape[op], around

    def seen(self, value: Value) -> Hashable:
        """A value as its users see it: itself where it has a partner, else what makes it."""
        if value in self.taken:
            return value
        return self.values.get(value) or (self.shape[value.op] if value.op is not None else str(value.type))


def _paired(mine: Iterable[T], its: Iterable[T], key: Key[T]) -> Iterator[tuple[list[T], list[T]]]:
    """What has the same key on both sides, in the order of the first."""
    groups: dict[Hashable, tuple[list[T], list[T]]] = defaultdict(lambda: ([], []))
    for side, things in enumerate((mine, its)):
        for thing in things:
            groups[key(thing)][side].append(thing)
    for name, (a, b) in groups.items():
        if name is not None and a and b:
            yield a, b


def _same_slots(a: Op, b: Op) -> Iterator[tuple[Value, Value]]:
    """Operands in the same place; of a commutative op with two, also crosswise where only that puts like with like."""
    its = dict(slots(b))
    straight = [(value, its[slot]) for slot, value in slots(a) if slot in its]
    if a.commutative and len(straight) == 2:
        (x, y), (z, w) = straight
        if [_maker(x), _maker(z)] == [_maker(w), _maker(y)] and _maker(x) != _maker(z):
            straight = [(x, w), (z, y)]
    yield from straight


def _maker(value: Value) -> str:
    return "weight" if isinstance(value, Const) else value.op.name if value.op is not None else "parameter"
