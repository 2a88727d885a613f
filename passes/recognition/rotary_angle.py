"""Reads the cosine or sine of a rotary embedding back to the positions and frequencies it was made from.

    cos(concat(f, f)) with f = positions[..., None] * inv_freq, cast, scaled, cut, repeated and broadcast on the way
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.ir.dims import Dim
from ingot.ir.ops.layout import Concat, Expand, Reshape, Slice, Split, Transpose
from ingot.ir.ops.pointwise import Cast, Cos, Mul, Sin
from ingot.ir.pattern import NoMatch, scalar_of
from ingot.ir.value import Value
from ingot.passes.cleanup.fold_constants import from_weights

Axes = tuple[int | None, ...]
"""For every axis of a value, the axis of the cosine it ends up as, counted from the right (-1 is the last)."""


@dataclass(frozen=True)
class Angle:
    """What a cosine or sine is made of.

    pairing: how the features take the frequencies: `half` (f0, f1, ..., f0, f1, ...), `interleaved` (f0, f0, f1, f1, ...)
    or `once`. scale: factor on the cosine itself. speed: factor on the frequencies. pos: integers, whose axes are `axes`.
    """

    function: type[Cos] | type[Sin]
    pairing: str
    scale: float
    speed: float
    pos: Value
    axes: Axes
    inv_freq: Value

    def same_turn(self, other: Angle) -> bool:
        """Whether two angles, of a cosine and a sine, are the same."""
        return (self.pos is other.pos and self.inv_freq is other.inv_freq and self.axes == other.axes
                and (self.pairing, self.scale, self.speed) == (other.pairing, other.scale, other.speed))


class _Walk:
    """A way back through the graph: where it is, which axes it knows, which feature reads which, and the factor so far."""

    def __init__(self, value: Value) -> None:
        features = value.type.dims[-1] if value.type.rank else 0
        if not isinstance(features, int):
            raise NoMatch("the number of features is not fixed", value)
        self.value = value
        self.axes: Axes = tuple(range(-value.type.rank, 0))
        self.index = np.arange(features)
        self.factor = 1.0

    def step(self) -> None:
        """One op back along ops that move, cast or scale. Raises NoMatch at any other."""
        value, op = self.value, self.value.op
        last = value.type.rank - 1
        match op:
            case Mul() if (factor := scalar_of(op.y)) is not None and op.x.type.dims == value.type.dims:
                self.factor *= factor
            case Cast() if op.x.type.dtype.is_float:
                pass
            case Expand():
                self.axes = self.axes[len(self.axes) - op.x.type.rank:]
            case Transpose():
                back = {p: self.axes[i] for i, p in enumerate(op.perm)}
                self.axes = tuple(back[i] for i in range(len(back)))
            case Concat() if op.axis % value.type.rank == last and len(set(op.xs)) == 1:
                part = op.xs[0].type.dims[last]
                assert isinstance(part, int)  # the feature axis is fixed, and so are its parts
                self.index = self.index % part
            case Slice() if op.axis == last and isinstance(op.start, int):
                self.index = self.index * op.step + op.start
            case Split() if op.axis % value.type.rank == last:
                before = op.sizes[:op.results.index(value)]
                self.index = self.index + sum(n for n in before if isinstance(n, int))
            case Reshape() if (source := _each_twice(op)) is not None:
                self.value, self.index = source, self.index // 2
                self.axes = self.axes[len(self.axes) - source.type.rank:]
                return
            case Reshape():
                self.axes = _reshaped(op, self.axes)
            case _:
                found = f"found {op.name}" if op is not None else "found an input"
                raise NoMatch(f"no cosine or sine of positions times frequencies: {found}", value)
        self.value = op.operands[0]


def read_angle(value: Value) -> Angle:
    """The angle behind a cosine or sine, as it is multiplied with features. Raises NoMatch saying where it stops."""
    walk = _Walk(value)
    while not isinstance(walk.value.op, Cos | Sin):
        walk.step()
    function, scale = type(walk.value.op), walk.factor
    walk.value, walk.factor = walk.value.op.x, 1.0
    while not isinstance(walk.value.op, Mul) or scalar_of(walk.value.op.y) is not None:
        walk.step()
    product = walk.value.op
    for pos, freq in ((product.x, product.y), (product.y, product.x)):
        if from_weights(freq) and not from_weights(pos):
            frequencies = _frequencies(freq, walk.axes)
            pos, axes, speed = _positions(pos, walk.axes)
            return Angle(function, _pairing(walk.index, value), scale, speed * walk.factor, pos, axes, frequencies)
    raise NoMatch("the angle is no product of positions and constant frequencies", walk.value)


def _pairing(index: np.ndarray, where: Value) -> str:
    n = int(index.max()) + 1 if len(index) else 0
    for name, wanted in (("half", np.tile(np.arange(n), 2)), ("interleaved", np.arange(n).repeat(2)), ("once", np.arange(n))):
        if np.array_equal(index, wanted):
            return name
    raise NoMatch("features take the frequencies in no known order", where)


def _frequencies(value: Value, axes: Axes) -> Value:
    """The constant frequencies without the moves that let them broadcast along the last axis."""
    axes = axes[len(axes) - value.type.rank:]
    while isinstance(value.op, Reshape | Expand | Cast):
        axes = _reshaped(value.op, axes) if isinstance(value.op, Reshape) else axes[len(axes) - value.op.x.type.rank:]
        value = value.op.x
    if any(axis not in (-1, None) for axis, d in zip(axes, value.type.dims) if d != 1):
        raise NoMatch("frequencies lie along another axis than the features", value)
    return value


def _positions(value: Value, axes: Axes) -> tuple[Value, Axes, float]:
    """Integer positions below casts, factors and moves; where their axes end up; the product of the factors."""
    walk = _Walk(value)
    walk.axes = axes[len(axes) - value.type.rank:]
    while not walk.value.type.dtype.is_integer:
        op = walk.value.op
        if isinstance(op, Cast) and op.x.type.dtype.is_integer:
            walk.value = op.x
        else:
            walk.step()
    while isinstance(walk.value.op, Reshape | Expand):
        walk.step()
    return walk.value, walk.axes, walk.factor


def _reshaped(op: Reshape, axes: Axes) -> Axes:
    """Axes before a reshape that only adds or removes axes of size one."""
    wide: list[tuple[Dim, int | None]] = [(d, a) for d, a in zip(op.shape, axes) if d != 1]
    if [d for d, _ in wide] != [d for d in op.x.type.dims if d != 1]:
        raise NoMatch(f"the angle is reshaped from {op.x.type} to {op.result.type}", op.result)
    rest = iter(a for _, a in wide)
    return tuple(None if d == 1 else next(rest) for d in op.x.type.dims)


def _each_twice(op: Reshape) -> Value | None:
    """x when a reshape ends the steps that repeat every feature of x: [..., n] to [..., n, 1], [..., n, 2], [..., 2 n]."""
    wide = op.x.op
    if not isinstance(wide, Expand) or not isinstance(wide.x.op, Reshape):
        return None
    source = wide.x.op.x
    ends = wide.shape[-1] == 2 and wide.x.type.dims[-1] == 1 and op.shape[-1] == source.type.dims[-1] * 2
    same = [d for d in wide.x.type.dims[:-1] if d != 1] == [d for d in source.type.dims if d != 1]
    return source if ends and same and source.type.dims[:-1] == op.shape[:-1] else None
