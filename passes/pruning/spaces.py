"""Axes as spaces of positions: whole, or divided into an ordered product or sum of smaller spaces.

Two axes that an op ties to each other become one space; where one of them is divided, so is the other. What is left undivided in
the end are the atoms: positions of an atom can be taken out everywhere at once, and every tensor stays dense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np


class Space:
    """`size` positions; `how` is "" (whole), "product" (row-major, outermost part first) or "sum" (one part after the other)."""

    __slots__ = ("_frozen", "_same", "how", "parts", "size")

    def __init__(self, size: int, how: str = "", parts: tuple[Space, ...] = ()) -> None:
        self.size = size
        self.how = how
        self.parts = parts
        self._same: Space | None = None
        self._frozen = ""

    @property
    def root(self) -> Space:
        """The space that stands for this one and all that were unified with it."""
        space = self
        while space._same is not None:
            space = space._same
        return space

    def freeze(self, reason: str) -> None:
        """No position may be taken out of it or its parts, for a reason; the first one stays."""
        self.root._frozen = self.root._frozen or reason

    def atoms(self, reason: str = "") -> Iterator[tuple[Space, str]]:
        """The undivided spaces it consists of, each with why it is frozen ("" where it is not), itself when it is whole."""
        top = self.root
        reason = top._frozen or reason
        if not top.parts:
            yield top, reason
        for part in top.parts:
            yield from part.atoms(reason)

    def divide(self, how: str, parts: Sequence[Space]) -> None:
        """Make a whole space a product or sum of others."""
        self.how, self.parts = how, tuple(parts)

    def positions(self, atom: Space) -> np.ndarray:
        """Which position of an atom stands at each position of this space, i64[size]; -1 where none does."""
        top = self.root
        if not top.parts:
            return np.arange(top.size) if top is atom.root else np.full(top.size, -1)
        inner = [part.positions(atom) for part in top.parts]
        if top.how == "sum":
            return np.concatenate(inner)
        shape = [p.size for p in top.parts]
        grid = [a.reshape([-1 if i == k else 1 for i in range(len(shape))]) for k, a in enumerate(inner)]
        found = np.full(shape, -1)
        for a in grid:
            np.maximum(found, a, out=found)
        return found.reshape(-1)

    def resized(self, sizes: dict[Space, int]) -> int:
        """Its size when atoms have other sizes."""
        top = self.root
        if not top.parts:
            return sizes.get(top, top.size)
        inner = [part.resized(sizes) for part in top.parts]
        return sum(inner) if top.how == "sum" else math.prod(inner)


def product(parts: Sequence[Space]) -> Space:
    """The product of spaces, those of one position left out."""
    kept = [p for p in parts if p.size != 1]
    return kept[0] if len(kept) == 1 else Space(math.prod(p.size for p in kept), "product" if kept else "", tuple(kept))


def joined(parts: Sequence[Space]) -> Space:
    """The sum of spaces, empty ones left out."""
    kept = [p for p in parts if p.size]
    return kept[0] if len(kept) == 1 else Space(sum(p.size for p in kept), "sum" if kept else "", tuple(kept))


def unify(a: Space, b: Space) -> None:
    """Make two spaces one, divided as finely as either. Where their divisions do not fit each other, both are frozen."""
    a, b = a.root, b.root
    if a is b:
        return
    if a.size != b.size:
        _refuse(a, b)
    elif not a.parts or not b.parts:
        a, b = (a, b) if not a.parts else (b, a)
        a._same = b
        b.freeze(a._frozen)
    elif a.how == b.how:
        if not _aligned(a, b):
            _refuse(a, b)
    elif not _sum_of_products(*((a, b) if a.how == "sum" else (b, a))):
        _refuse(a, b)


def _refuse(a: Space, b: Space) -> None:
    for space in (a, b):
        space.freeze("it is divided in two ways that do not fit")


def _aligned(a: Space, b: Space) -> bool:
    """Unify the parts of two products, or two sums, from the first on, dividing the larger ones. Whether they fit."""
    xs, ys = list(_flat(a, a.how)), list(_flat(b, a.how))
    while xs and ys:
        x, y = xs[0].root, ys[0].root
        if x.size == y.size:
            unify(x, y)
            del xs[0], ys[0]
            continue
        large, small = (xs, y.size) if x.size > y.size else (ys, x.size)
        pieces = _cut(large[0].root, small) if a.how == "sum" else _factored(large[0].root, small)
        if pieces is None:
            return False
        large[:1] = pieces
    return not xs and not ys


def _sum_of_products(total: Space, grid: Space) -> bool:
    """Unify a sum with a product, cutting the product's outermost part where the sum's parts end. Whether they fit."""
    rest = grid
    parts = list(_flat(total, "sum"))
    for part in parts[:-1]:
        pieces = _cut(rest.root, part.size)
        if pieces is None:
            return False
        unify(part, pieces[0])
        rest = pieces[1]
    unify(parts[-1], rest)
    return True


def _flat(space: Space, how: str) -> Iterator[Space]:
    top = space.root
    if top.how != how:
        yield top
        return
    for part in top.parts:
        yield from _flat(part, how)


def _cut(space: Space, at: int) -> tuple[Space, Space] | None:
    """A space as a sum of two, the first of `at` positions; None where its divisions do not allow it."""
    if not space.parts:
        pieces = Space(at), Space(space.size - at)
        space.divide("sum", pieces)
        return pieces
    if space.how == "sum":
        before: list[Space] = []
        for i, part in enumerate(space.parts):
            if part.size > at:
                inside = _cut(part.root, at) if at else (Space(0), part)
                if inside is None:
                    return None
                return joined([*before, inside[0]]), joined([inside[1], *space.parts[i + 1:]])
            before.append(part)
            at -= part.size
        return None
    outer, *inner = space.parts
    if at % (step := math.prod(p.size for p in inner)):
        return None
    outers = _cut(outer.root, at // step)
    return None if outers is None else (product([outers[0], *inner]), product([outers[1], *inner]))


def _factored(space: Space, outer: int) -> tuple[Space, Space] | None:
    """A whole space as a product of two, the first of `outer` positions; None where that does not go."""
    if space.parts or space.size % outer:
        return None
    pieces = Space(outer), Space(space.size // outer)
    space.divide("product", pieces)
    return pieces
