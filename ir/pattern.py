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
from ingot.ir.weights import ArrayWeight

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


@dataclass
class Trace:
    """The furthest a match got: how many ops fitted, and what stopped it there (first, of several equally far)."""

    matched: int = 0
    reason: str = ""
    value: Value | None = None

    def stop(self, matched: int, reason: str, value: Value) -> None:
        if matched > self.matched or not self.reason:
            self.matched, self.reason, self.value = matched, reason, value


class Pattern:
    """Base: `match` yields every way the pattern fits a value, as extended bindings."""

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
            trace.stop(len(ops_of(bound)), f"{self.name} is two different values", value)


@dataclass(frozen=True)
class C(Pattern):
    """A weight, possibly cast."""

    name: str

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        source = value
        while source.op is not None and isinstance(source.op, Cast):
            source = source.op.x
        if isinstance(source, Const) and bound.get(self.name, value) is value:
            yield {**bound, self.name: value}
        else:
            trace.stop(len(ops_of(bound)), f"{self.name} is not a weight", value)


@dataclass(frozen=True)
class S(Pattern):
    """A scalar constant, bound as a float; with `equals`, one of that value (relative 1e-8)."""

    name: str = ""
    equals: float | None = None

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        number = scalar_of(value)
        if number is None:
            trace.stop(len(ops_of(bound)), f"{self.name or self.equals} is not a scalar constant", value)
        elif self.equals is not None and abs(number - self.equals) > 1e-8 * max(abs(self.equals), 1e-30):
            trace.stop(len(ops_of(bound)), f"constant {number}, expected {self.equals}", value)
        elif self.name and bound.get(self.name, number) != number:
            trace.stop(len(ops_of(bound)), f"{self.name} is two different numbers", value)
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

    def match(self, value: Value, bound: Bindings, trace: Trace) -> Iterator[Bindings]:
        op = value.op
        depth = len(ops_of(bound))
        if not isinstance(op, self.cls):
            got = f"op {op.name}" if op is not None else "a weight" if isinstance(value, Const) else "a parameter"
            wanted = " or ".join(c.name or c.__name__ for c in self.cls)
            trace.stop(depth, f"expected {wanted}, found {got}", value)
            return
        for name, wanted in self.attrs.items():
            have = getattr(op, name)
            if not (wanted(have) if callable(wanted) else have == wanted):
                trace.stop(depth, f"{op.name}.{name} is {have}", value)
                return
        found = {**bound, "": (*ops_of(bound), op)}
        if self.bind:
            found[self.bind] = op
        if not self.operands:
            yield found
            return
        operands = op.operands
        if len(operands) != len(self.operands):
            trace.stop(depth, f"{op.name} has {len(operands)} operands, expected {len(self.operands)}", value)
            return
        orders = [self.operands]
        if op.commutative:
            orders.append(self.operands[::-1])
        for order in orders:
            yield from _match_all(order, operands, found, trace)


@dataclass(frozen=True)
class Through(Pattern):
    """`inner`, reached directly or through a chain of ops of `classes` (of one operand each)."""

    inner: Pattern
    classes: tuple[type[Op], ...] = (Cast,)

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
