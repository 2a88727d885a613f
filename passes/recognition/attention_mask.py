"""Reads masks built from comparisons of positions, triangles, tables and padding: which keys does a query see?

A mask is a value that broadcasts to [b, h, s, t]; axes are counted from the right, -2 the query's, -1 the key's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ingot.ir.dims import Dim
from ingot.ir.op import Op
from ingot.ir.ops.creation import Arange, Full, Scalar, Size
from ingot.ir.ops.layout import Expand, Reshape, Slice, Take, Triangle
from ingot.ir.ops.pointwise import (
    Abs,
    Add,
    And,
    Cast,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Mod,
    Mul,
    Neg,
    Not,
    NotEqual,
    Sub,
    Where,
)
from ingot.ir.pattern import NoMatch, scalar_of, unread
from ingot.ir.types import bool_
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight

QUERY, KEY, BATCH = -2, -1, -4
SHUT = -1e4
"""A score this low or lower, added, hides a key: its exponential is zero in float64 too."""


@dataclass
class Visibility:
    """Key j is seen by query i when j - i < ahead, i - j < back, and every one of `padding` [b, t] is nonzero at j."""

    ahead: int | None = None
    back: int | None = None
    padding: list[Value] = field(default_factory=list)

    def limit(self, *, ahead: int | None = None, back: int | None = None) -> None:
        if ahead is not None:
            self.ahead = ahead if self.ahead is None else min(ahead, self.ahead)
        if back is not None:
            self.back = back if self.back is None else min(back, self.back)

    @property
    def attributes(self) -> tuple[bool, int | None]:
        """(causal, window) as attention has them. Raises NoMatch when they cannot say it."""
        if self.ahead == 1:
            return True, self.back
        if self.ahead == self.back:
            return False, self.back
        ahead, back = ("all" if n is None else n - 1 for n in (self.ahead, self.back))
        raise NoMatch(f"queries see {ahead} keys ahead of them and {back} behind, which is neither causal nor a window")


def read_mask(value: Value, seen: Visibility, *, factor: float = 1.0) -> None:
    """Take a mask that is added to scores into account. Raises NoMatch when it may be anything else."""
    op = value.op
    if isinstance(op, Cast | Expand):
        return read_mask(op.operands[0], seen, factor=factor)
    if isinstance(op, Mul) and (scale := scalar_of(op.y)) is not None:
        hidden = _hidden(op.x)
        if hidden is not None and scale * factor <= SHUT:
            return read_condition(hidden, seen)
        if scale > 0:
            return read_mask(op.x, seen, factor=factor * scale)
    if isinstance(op, Where):
        kept, shut = scalar_of(op.x), scalar_of(op.y)
        if kept == 0 and shut is not None and shut * factor <= SHUT:
            return read_condition(op.cond, seen)
        if shut == 0 and kept is not None and kept * factor <= SHUT:
            return read_condition(op.cond, seen, negated=True)
    table = _table(value)
    if table is not None and np.all((table == 0) | (table * factor <= SHUT)):
        return _read_table(table == 0, value, seen)
    raise NoMatch(f"the bias is not zero or minus infinity by position{unread(value)}", value)


def read_condition(value: Value, seen: Visibility, *, negated: bool = False) -> None:
    """Take a mask that is nonzero where a key is seen into account (or hidden, when `negated`)."""
    op = value.op
    if isinstance(op, Expand) or (isinstance(op, Cast) and not op.x.type.dtype.is_float):
        return read_condition(op.operands[0], seen, negated=negated)
    if isinstance(op, Not):
        return read_condition(op.x, seen, negated=not negated)
    if isinstance(op, And) and not negated:
        read_condition(op.x, seen)
        return read_condition(op.y, seen)
    if isinstance(op, Less | LessEqual | Greater | GreaterEqual):
        return _read_comparison(op, seen, negated)
    if isinstance(op, NotEqual) and scalar_of(op.y) == 0:
        return read_condition(op.x, seen, negated=negated)
    if isinstance(op, Triangle) and scalar_of(op.x) not in (None, 0.0):
        d = op.diagonal
        if op.upper == negated:  # keys up to a diagonal
            return seen.limit(ahead=d if negated else d + 1)
        return seen.limit(back=-d if negated else 1 - d)
    constant = scalar_of(value)
    if constant is not None and bool(constant) != negated:
        return None
    table = _table(value)
    if table is not None:
        return _read_table((table != 0) != negated, value, seen)
    if negated:
        raise NoMatch(f"a negated condition on data{unread(value)}", value)
    padding = _padding(value)
    if padding is None:
        raise NoMatch(f"the condition is about something else than positions and padding{unread(value)}", value)
    seen.padding.append(padding)
    return None


def _hidden(value: Value) -> Value | None:
    """m when a value is 1 - m for a mask m of integers."""
    op = value.op
    if isinstance(op, Sub) and scalar_of(op.x) == 1 and isinstance(op.y.op, Cast) and not op.y.op.x.type.dtype.is_float:
        return op.y.op.x
    return None


# --- comparisons of positions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """An integer tensor as constant + sum of factor * index along an axis."""

    factors: dict[int, Dim]
    constant: Dim

    def plus(self, other: Affine, times: int = 1) -> Affine:
        factors = dict(self.factors)
        for axis, f in other.factors.items():
            factors[axis] = factors.get(axis, 0) + f * times
        return Affine({a: f for a, f in factors.items() if f != 0}, self.constant + other.constant * times)


def affine(value: Value) -> Affine:
    """A value as an affine function of its indices. Raises NoMatch when it is none."""
    op = value.op
    match op:
        case Arange() if value.type.dtype.is_integer:
            return Affine({-1: op.step}, op.start)
        case Scalar() | Full() if value.type.dtype.is_integer:
            return Affine({}, int(op.value))
        case Size():
            return Affine({}, op.dim)
        case Reshape():
            return _moved(op, affine(op.x))
        case Expand():
            return affine(op.x)
        case Cast() if op.dtype.is_integer and op.x.type.dtype.is_integer:
            return affine(op.x)
        case Add():
            return affine(op.x).plus(affine(op.y))
        case Sub():
            return affine(op.x).plus(affine(op.y), -1)
        case Neg():
            return Affine({}, 0).plus(affine(op.x), -1)
        case Mul():
            x, y = affine(op.x), affine(op.y)
            if y.factors:
                x, y = y, x
            if not y.factors:
                return Affine({a: f * y.constant for a, f in x.factors.items()}, x.constant * y.constant)
        case Mod():
            x, y = affine(op.x), affine(op.y)
            if x.constant == 0 and not y.factors and [(1, y.constant)] == [(f, op.x.type.dims[a]) for a, f in x.factors.items()]:
                return x
    raise NoMatch("it is no sum of positions and constants", value)


def _moved(op: Reshape, x: Affine) -> Affine:
    """Factors along the axes after a reshape that only adds or removes axes of size one."""
    before = [i - op.x.type.rank for i, d in enumerate(op.x.type.dims) if d != 1]
    after = [i - op.result.type.rank for i, d in enumerate(op.result.type.dims) if d != 1]
    if [op.x.type.dims[a] for a in before] != [op.result.type.dims[a] for a in after]:
        raise NoMatch("positions are reshaped", op.result)
    to = dict(zip(before, after))
    if any(a not in to for a in x.factors):
        raise NoMatch("positions lie along an axis of size one", op.result)
    return Affine({to[a]: f for a, f in x.factors.items()}, x.constant)


def _read_comparison(op: Op, seen: Visibility, negated: bool) -> None:
    x, y = op.operands
    if isinstance(x.op, Abs):
        limit = affine(y)
        if isinstance(op, Less | LessEqual) and not negated and not limit.factors:
            for sign in (1, -1):
                _limit(Affine({}, 0).plus(affine(x.op.x), sign).plus(limit, -1), isinstance(op, LessEqual), seen, x)
            return
    less = isinstance(op, Less | LessEqual) != negated
    equal = isinstance(op, LessEqual | GreaterEqual) != negated
    difference = affine(x).plus(affine(y), -1)
    _limit(difference if less else Affine({}, 0).plus(difference, -1), equal, seen, x)


def _limit(below: Affine, equal: bool, seen: Visibility, where: Value) -> None:
    """Take `below < 0` (or `<= 0`) into account."""
    constant = below.constant
    if isinstance(constant, int):
        limit = (1 if equal else 0) - constant
        if below.factors == {KEY: 1, QUERY: -1}:
            return seen.limit(ahead=limit)
        if below.factors == {KEY: -1, QUERY: 1}:
            return seen.limit(back=limit)
        if limit > 0 and all(isinstance(f, int) and f <= 0 for f in below.factors.values()):
            return None
    raise NoMatch("the comparison is not between query and key positions", where)


# --- tables and padding -------------------------------------------------------------------------------------------


def _table(value: Value) -> np.ndarray | None:
    """The numbers [s, t] of a constant mask of which the first queries and keys are taken."""
    while isinstance(value.op, Slice | Cast | Reshape | Expand):
        op = value.op
        if isinstance(op, Slice) and (op.start != 0 or op.step != 1 or op.axis % op.x.type.rank < op.x.type.rank - 2):
            return None
        if isinstance(op, Reshape) and op.x.type.dims[-2:] != value.type.dims[-2:]:
            return None
        value = op.x
    if not isinstance(value, Const) or not isinstance(value.weight, ArrayWeight) or value.type.rank < 2:
        return None
    array = value.weight.materialize()
    rows, columns = array.shape[-2:]
    return array.reshape(rows, columns).astype(np.float64) if array.size == rows * columns > 1 else None


def _read_table(visible: np.ndarray, value: Value, seen: Visibility) -> None:
    """A table that is a triangle or a band. Raises NoMatch when it is another shape."""
    rows, columns = np.nonzero(visible)
    if visible.shape[0] != visible.shape[1] or not len(rows):
        raise NoMatch("the table of visible keys is not square", value)
    ahead, back = int((columns - rows).max()) + 1, int((rows - columns).max()) + 1
    i, j = np.indices(visible.shape)
    if not np.array_equal(visible, (j - i < ahead) & (i - j < back)):
        raise NoMatch("the table of visible keys is no band", value)
    size = visible.shape[0]
    seen.limit(ahead=ahead if ahead < size else None, back=back if back < size else None)


def _padding(value: Value) -> Value | None:
    """A mask [b, t] given for keys, as [b, 1, 1, t] or picked from its flat form by position."""
    op = value.op
    if isinstance(op, Take) and isinstance(op.x.op, Reshape) and op.x.type.rank == 1:
        flat = op.x.op.x
        if flat.type.rank == 2 and affine(op.index) == Affine({BATCH: flat.type.dims[1], KEY: 1}, 0):
            return _nonzero(flat)
        return None
    if isinstance(op, Reshape) and value.type.rank == 4 and op.x.type.rank == 2 and value.type.dims[1:3] == (1, 1):
        return _nonzero(op.x) if op.x.type.dims == (value.type.dims[0], value.type.dims[3]) else None
    return None


def _nonzero(mask: Value) -> Value:
    """A mask without a cast that only says that it is not zero."""
    op = mask.op
    return op.x if isinstance(op, Cast) and op.dtype == bool_ and not op.x.type.dtype.is_float else mask


def terms(value: Value) -> Iterator[Value]:
    """The summands of a bias."""
    op = value.op
    if isinstance(op, Add) and op.result.type.dtype.is_float:
        yield from terms(op.x)
        yield from terms(op.y)
    else:
        yield value
