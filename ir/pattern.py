"""Patterns over op trees, and matching with the reason of a miss.

    P(Mul, P(Silu, V("x")), V("up"))

`V` binds any value, `C` a weight, `S` a scalar constant, `P` an op with patterns for its operands; `Through` looks past
ops of a class (casts, say); `Either` tries alternatives. Commutative ops match in both orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingot.errors import IngotError
from ingot.ir.op import Op
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.pointwise import Cast
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, UnknownWeight

Bindings = Mapping[str, Any]


class NoMatch(Exception):
    """Why a rule does not apply here: the reason, and the value it is about.

    matched: how many ops of the pattern fitted; None when all did and a check objected.
    """

    def __init__(self, reason: str, value: Value | None = None, *, matched: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.value = value
        self.matched = matched


class Elsewhere(NoMatch):
    """The rule is about something else: not even a near miss."""


_MISTAKE = "!"
"""The binding under which a forgiven mistake is kept: (reason, value)."""


@dataclass
class Trace:
    """The furthest a match got: how many ops fitted, and what stopped it there (first, of several equally far).

    forgiving: a match goes on after its first mistake, to see whether all else fits.
    """

    matched: int = 0
    reason: str = ""
    value: Value | None = None
    forgiving: bool = False

    def stop(self, bound: Bindings, reason: str, value: Value) -> Iterator[Bindings]:
        """Note a mistake; yields the bindings to go on with where it is forgiven."""
        matched = len(ops_of(bound))
        if matched > self.matched or not self.reason:
            self.matched, self.reason, self.value = matched, reason, value
        if self.forgiving and _MISTAKE not in bound:
            yield {**bound, _MISTAKE: (reason, value)}


class Pattern:
    """Base: `match` yields every way the pattern fits a value, as extended bindings."""

    @property
    def size(self) -> int:
        """How many ops it takes, those looked past left out."""
        return 0

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        raise NotImplementedError


@dataclass(frozen=True)
class V(Pattern):
    """Any value; the same name twice means the same value."""

    name: str

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        if bound.get(self.name, value) is value:
            yield {**bound, self.name: value}
        else:
            for excused in trace.stop(bound, f"{self.name} is two different values", value):
                yield {**excused, self.name: value}


@dataclass(frozen=True)
class C(Pattern):
    """A weight, possibly cast."""

    name: str

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        source = value
        while source.op is not None and isinstance(source.op, Cast):
            source = source.op.x
        if not isinstance(source, Const):
            yield from trace.stop(bound, f"{self.name} is {kind_of(value)}, not a weight", value)
        elif bound.get(self.name, value) is not value:
            yield from trace.stop(bound, f"{self.name} is two different weights", value)
        else:
            yield {**bound, self.name: value}


@dataclass(frozen=True)
class S(Pattern):
    """A scalar constant, bound as a float; with `equals`, one of that value (relative 1e-8)."""

    name: str = ""
    equals: float | None = None

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        number = scalar_of(value)
        if number is None:
            wanted = f"the constant {self.equals}" if self.equals is not None else f"a scalar constant {self.name}".rstrip()
            yield from trace.stop(bound, f"expected {wanted}, found {kind_of(value)}{unread(value)}", value)
        elif self.equals is not None and abs(number - self.equals) > 1e-8 * max(abs(self.equals), 1e-30):
            yield from trace.stop(bound, f"constant {number}, expected {self.equals}", value)
        elif self.name and bound.get(self.name, number) != number:
            yield from trace.stop(bound, f"{self.name} is two different numbers", value)
        else:
            yield {**bound, self.name: number} if self.name else bound


class P(Pattern):
    """An op of class `cls` (or of one of several) whose operands fit; without `operands`, whatever they are.

    Attributes must equal `attrs`, or satisfy them where they are callable. `bind` names the op itself.
    """

    def __init__(self, cls: type[Op] | tuple[type[Op], ...], *operands: Pattern, bind: str = "", **attrs: Any) -> None:
        self.cls = cls if isinstance(cls, tuple) else (cls,)
        self.operands = operands
        self.bind = bind
        self.attrs = attrs

    @property
    def size(self) -> int:
        return 1 + sum(pattern.size for pattern in self.operands)

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        op = value.op
        if not isinstance(op, self.cls):
            wanted = " or ".join(c.name or c.__name__ for c in self.cls)
            for excused in trace.stop(bound, f"expected {wanted}, found {kind_of(value)}", value):
                alike = op is not None and len(op.operands) == len(self.operands)
                yield from self._match_operands(op, excused, trace) if op is not None and alike else (excused,)
            return
        wrong = next((f"{op.name}.{name} is {getattr(op, name)}" for name, wanted in self.attrs.items()
                      if not (wanted(getattr(op, name)) if callable(wanted) else getattr(op, name) == wanted)), None)
        if wrong is None and self.operands and len(op.operands) != len(self.operands):
            wrong = f"{op.name} has {len(op.operands)} operands, expected {len(self.operands)}"
        for known in (bound,) if wrong is None else trace.stop(bound, wrong, value):
            found = {**known, "": (*ops_of(known), op)}
            if self.bind:
                found[self.bind] = op
            alike = bool(self.operands) and len(op.operands) == len(self.operands)
            yield from self._match_operands(op, found, trace) if alike else (found,)

    def _match_operands(self, op: Op, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        orders = [self.operands]
        if op.commutative:
            orders.append(self.operands[::-1])
        for order in orders:
            yield from _match_all(order, op.operands, bound, trace)


@dataclass(frozen=True)
class Through(Pattern):
    """`inner`, reached directly or through a chain of ops of `classes` (of one operand each)."""

    inner: Pattern
    classes: tuple[type[Op], ...] = (Cast,)

    @property
    def size(self) -> int:
        return self.inner.size

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        yield from self.inner.match(value, bound, trace)
        while value.op is not None and isinstance(value.op, self.classes):
            bound = {**bound, "": (*ops_of(bound), value.op)}
            value = value.op.operands[0]
            yield from self.inner.match(value, bound, trace)


class Either(Pattern):
    """The first of several patterns that fits, then the others."""

    def __init__(self, *options: Pattern) -> None:
        self.options = options

    @property
    def size(self) -> int:
        return max(option.size for option in self.options)

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        for option in self.options:
            yield from option.match(value, bound, trace)


def _match_all(patterns: tuple[Pattern, ...], values: tuple[Value, ...], bound: Bindings,
               trace: Trace) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in patterns[0].match(values[0], bound, trace):
        yield from _match_all(patterns[1:], values[1:], found, trace)


def ops_of(bound: Bindings) -> tuple[Op, ...]:
    """The ops matched so far, outermost first."""
    ops: tuple[Op, ...] = bound.get("", ())
    return ops


def kind_of(value: Value) -> str:
    """What a value is, in words: the op it comes from, a weight or a parameter."""
    return f"op {value.op.name}" if value.op is not None else "a weight" if isinstance(value, Const) else "a parameter"


def unread(value: Value) -> str:
    """" (its numbers are not in the dump)" for a weight known by name only, behind casts and moves too; else nothing.

    For reasons: a rule that asks for numbers cannot tell there.
    """
    while value.op is not None and value.op.name in ("cast", "reshape", "expand", "slice"):
        value = value.op.operands[0]
    unknown = isinstance(value, Const) and isinstance(value.weight, UnknownWeight)
    return " (its numbers are not in the dump)" if unknown else ""


def scalar_of(value: Value) -> float | None:
    """The number a value is, when it is known to be one: a scalar op, a uniform `full`, or a weight of rank 0 in memory."""
    op = value.op
    if isinstance(op, Cast):
        number = scalar_of(op.x)
        if number is None or op.dtype.is_float:
            return number
        if op.dtype.is_integer:
            return float(int(number)) if math.isfinite(number) else None
        return float(number != 0)
    if isinstance(op, Scalar | Full):
        return float(op.value)
    if isinstance(value, Const) and isinstance(value.weight, ArrayWeight) and not value.type.rank:
        return float(value.weight.array)
    return None


@dataclass
class Match:
    """A place where a pattern fits. `m["x"]` is what name x is bound to; `op` the outermost op, `ops` all of them."""

    op: Op
    bindings: Bindings
    extra: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.extra[name] if name in self.extra else self.bindings[name]

    @property
    def ops(self) -> tuple[Op, ...]:
        return ops_of(self.bindings)


def match(pattern: Pattern, op: Op) -> Match:
    """The first way `pattern` fits the (first) result of `op`. Raises NoMatch with the reason of the nearest miss."""
    return next(matches(pattern, op))


def matches(pattern: Pattern, op: Op) -> Iterator[Match]:
    """Every way `pattern` fits the (first) result of `op`, one at least.

    Raises NoMatch with the reason of the nearest miss when there is none.
    """
    trace = Trace()
    found = False
    try:
        for bindings in pattern.match(op.results[0], {}, trace):
            found = True
            yield Match(op, bindings)
    except IngotError as error:
        raise NoMatch(str(error)) from None
    if not found:
        raise NoMatch(trace.reason, trace.value, matched=trace.matched)


def nearest(pattern: Pattern, op: Op) -> NoMatch | None:
    """What is wrong with an op that a pattern fits but for one mistake, of several ways the one with most ops; else None."""
    trace = Trace(forgiving=True)
    try:
        found = max(pattern.match(op.results[0], {}, trace), key=lambda bound: len(ops_of(bound)), default=None)
    except IngotError:  # a condition that cannot be asked here
        return None
    if found is None or _MISTAKE not in found:
        return None
    reason, value = found[_MISTAKE]
    return NoMatch(reason, value, matched=len(ops_of(found)))
