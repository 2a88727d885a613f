"""Comparing a module with what a pass made of it, slice by slice.

Values of both that correspond are taken to be equal, one after the other, each on the ground of the ones before: what
congruence does not show (equal ops of equal values) is tried on random inputs for the slice between the values and the
nearest ones that both modules share. This is the sweeping of combinational equivalence checking (Kuehlmann and Krohm,
"Equivalence checking using cuts and heaps", DAC 1997) over tensors. Slices that are built alike (the layers of a model) are
tried once, and the last of them again.

A value may rightly change its meaning: a scale folded into a neighbour. So a slice that fails is widened. First towards
the inputs, since shared values may depend on each other; then, where the failing value feeds another one that fails, the
latter is tried again without taking the former for granted. A value that still fails is an error unless every way
from it to the outputs leads through one that holds.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ingot.errors import IngotError
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.value import Const, Value
from ingot.passes.contracts.congruence import Congruence
from ingot.passes.contracts.difference import Difference
from ingot.passes.contracts.slices import extract, positional, shape_of, work
from ingot.passes.contracts.snapshot import Pair
from ingot.passes.contracts.trial import Finding, Trial

RETRIES = 8
"""Values tried again behind failing ones to no avail: a pass that is wrong in every layer is wrong in the first."""


@dataclass(frozen=True)
class Slice:
    """The part of both modules between corresponding values and what they share: `before` and `after` compute the value
    (and caches, where the trial carries them) from parameters of the same names. read: values that parameters stand for."""

    pair: Pair
    before: Module
    after: Module
    read: Mapping[str, Value]

    @property
    def ops(self) -> int:
        """How many ops it has afterwards."""
        return len(self.after.main.ops)

    @property
    def work(self) -> int:
        """What running both sides takes."""
        return sum(work(op) for module in (self.before, self.after) for op in module.ops)


@dataclass(frozen=True)
class Failure:
    """A value that goes wrong: the narrowest slice that shows it, what was found on it, and wider ones that fail as well."""

    slice: Slice
    finding: Finding
    wider: tuple[Slice, ...] = ()


@dataclass
class Sweep:
    """The search for the first value that a pass made wrong.

    before, after: the modules. pairs: corresponding values in the order afterwards. trial: what a slice must satisfy.
    budget: `work` up to which a slice is widened. given: numbers that values before are known to take, used in place of
    random ones. tried counts slices that were run, alike those built like another.
    undecided: whether only the whole module can tell, since other values that fail lie behind the one found.
    """

    before: Module
    after: Module
    pairs: Sequence[Pair]
    trial: Trial
    budget: int
    seed: int = 0
    given: Mapping[Value, np.ndarray] = field(default_factory=dict)
    tried: int = 0
    alike: int = 0
    undecided: bool = False
    _known: dict[Hashable, Failure | None] = field(default_factory=dict)
    _model: dict[Hashable, Pair] = field(default_factory=dict)
    _widened: set[Pair] = field(default_factory=set)
    _unrunnable: set[Pair] = field(default_factory=set)
    _skipped: dict[Hashable, list[Slice]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._equal = Congruence()
        self._values = [_values(module.main) for module in (self.before, self.after)]
        self._positional = [positional(module) for module in (self.before, self.after)]
        for module in (self.before, self.after):
            self._equal.add(module.main)
        for old, new in self.pairs:
            if old.op is None and new.op is None:
                self._equal.union(old, new)

    def run(self) -> Failure | None:
        """The first value whose change reaches the outputs; None when the outputs hold."""
        failures: dict[Pair, Failure] = {}
        for pair in self.pairs:
            if self._equal.same(*pair):
                continue
            found = self._try(pair)
            if found is not None:
                failures[pair] = found
            self._equal.union(*pair)
        for skipped in self._skipped.values():
            if self._judge(skipped[-1]) is not None:
                judged = {part.pair: self._judge(part) for part in skipped}
                failures.update({pair: found for pair, found in judged.items() if found is not None})
        return self._leaking(failures) if failures else None

    def slice(self, pair: Pair, *, wider: int = 0, suspects: Collection[Value] = ()) -> Slice:
        """The slice of a pair, past `wider` layers of shared values, and past all that are equal to one of `suspects`."""
        beyond = {self._equal.find(v) for v in suspects}
        while True:
            cones = [self._cone(side, value, wider, beyond) for side, value in enumerate(pair)]
            inside = {self._equal.find(r) for ops in cones for op in ops for r in op.results}
            leaves = [self._leaves(value, ops) for value, ops in zip(pair, cones)]
            # What one side computes the other must not take for given.
            torn = {root for side in leaves for v in side if v.op is not None and (root := self._equal.find(v)) in inside}
            if torn <= beyond:
                break
            beyond |= torn
        names = self._names(leaves)
        before, after = (extract(module, [value, *self._caches(module, ops, value)], ops, names)
                         for module, value, ops in zip((self.before, self.after), pair, cones))
        return Slice(pair, before, after, {name: v for v, name in names.items() if v in self._values[0]})

    # --- slices -------------------------------------------------------------------------------------------------------

    def _cone(self, side: int, value: Value, wider: int, beyond: set[Value]) -> set[Op]:
        """The ops behind a value up to shared ones."""
        reach: dict[Op, int] = {}
        pending = [(value, wider)]
        while pending:
            value, left = pending.pop()
            if value.op is None or reach.get(value.op, -1) >= left:
                continue
            reach[value.op] = left
            for v in value.op.operands:
                cut = v not in self._positional[side] and self._equal.find(v) not in beyond and self._shared(side, v)
                if not cut or left:
                    pending.append((v, left - cut))
        return set(reach)

    def _shared(self, side: int, value: Value) -> bool:
        return any(v in self._values[1 - side] for v in self._equal.members(value))

    @staticmethod
    def _leaves(value: Value, ops: Collection[Op]) -> list[Value]:
        """Parameters and values that the ops of a slice take from outside."""
        read = [value, *(v for op in ops for v in op.operands)]
        return [v for v in dict.fromkeys(read) if not isinstance(v, Const) and v.op not in ops]

    def _names(self, leaves: Iterable[Iterable[Value]]) -> dict[Value, str]:
        """A name for every leaf, the same for equal ones; parameters keep theirs."""
        given: dict[Value, str] = {}
        found = sorted((v for side in leaves for v in side), key=lambda v: v.op is not None)
        for value in found:
            root = self._equal.find(value)
            hint, taken = value.hint or "v", set(given.values())
            if root not in given:
                given[root] = next(n for n in (hint, *(f"{hint}.{i}" for i in range(len(taken) + 1))) if n not in taken)
        return {value: given[self._equal.find(value)] for value in found}

    def _caches(self, module: Module, ops: Collection[Op], value: Value) -> list[Value]:
        func = module.main
        carried = [func.returns[i] for i in func.reuse] if self.trial.carries else []
        return [v for v in carried if v.op in ops and v is not value]

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def _try(self, pair: Pair) -> Failure | None:
        part = self.slice(pair)
        key = shape_of(part.before, part.after)
        if key not in self._known:
            self._known[key] = self._judge(part)
            self._model[key] = pair
        else:
            self.alike += 1
            self._skipped.setdefault(key, []).append(part)
            self._widened.update([pair] if self._model[key] in self._widened else [])
        known = self._known[key]
        return replace(known, slice=part, wider=()) if known is not None and part.pair != known.slice.pair else known

    def _judge(self, part: Slice) -> Failure | None:
        """None when a slice holds, or a wider one of the same pair."""
        tried: list[Slice] = []
        first: Finding | None = None
        for wider in self.trial.wider:
            slice = self.slice(part.pair, wider=wider) if wider else part
            if tried and (slice.work > self.budget or slice.ops == tried[-1].ops):
                continue
            found = self._find(slice)
            if found is None:
                self._widened.update([part.pair] if tried else [])
                return None
            first = first or found
            tried.append(slice)
        assert first is not None
        return Failure(part, first, tuple(tried[1:]))

    def _find(self, part: Slice) -> Finding | None:
        """A slice that cannot be run on random inputs tells nothing: it counts as failing, and a wider one has to tell."""
        self.tried += 1
        given = {name: self.given[v] for name, v in part.read.items() if v in self.given}
        try:
            return self.trial.find(part.before, part.after, seed=self.seed, weights={}, given=given)
        except IngotError as error:
            self._unrunnable.add(part.pair)
            return Finding(0, Difference(f"it cannot be run by itself: {error.message}"), {})

    def _leaking(self, failures: dict[Pair, Failure]) -> Failure | None:
        """The first failing value whose change is not undone on every way to the outputs."""
        still: list[Pair] = []
        undone: set[Value] = set()
        retries = 0
        doubtful = [p for p in self.pairs if p in failures or p in self._widened]
        for pair in doubtful:
            tainted = self._behind(still, undone)
            if tainted & set(pair) and retries < RETRIES:
                part = self.slice(pair, suspects=tainted)
                if part.work <= self.budget:
                    if self._find(part) is None:
                        undone.update(pair)
                        continue
                    retries += 1
            if pair in failures:
                still.append(pair)
        for pair in still:
            behind = self._behind([pair], undone)
            if behind & set(self.after.main.returns):
                self.undecided = pair in self._unrunnable or any(p[1] in behind for p in doubtful if p != pair)
                return failures[pair]
        return None

    def _behind(self, pairs: Sequence[Pair], undone: set[Value]) -> set[Value]:
        """What depends on the values of `pairs`, they included, other than through values `undone`."""
        reached = {v for pair in pairs for v in pair}
        for module in (self.before, self.after):
            for op in module.main.ops:
                if any(v in reached for v in op.operands):
                    reached.update(r for r in op.results if r not in undone)
        return reached


def _values(func: Func) -> set[Value]:
    return {*func.params, *(r for op in func.ops for r in op.results)}
