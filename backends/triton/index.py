"""Index arithmetic: where an element lies, as a dimension expression over loop axes.

An index is a `Dim` whose symbols are loop axes (each counting from 0 below a bound) and sizes (at least 1: an empty tensor
starts no program). Layout ops turn one index into another; what comes out is simplified, so that a reshape of a contiguous
tensor reads at the loop axis itself, and a strided one at multiples of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ingot.ir.dims import Atom, Dim, Div, Expr, Monomial, Sym, divide, substitute, sym

Bounds = Mapping[str, Dim]
"""Loop axes by name: values 0 to bound - 1."""


def flattened(index: Sequence[Dim], dims: Sequence[Dim]) -> Dim:
    """The row-major position of an index in a tensor of these dims."""
    total: Dim = 0
    for i, size in zip(index, dims, strict=True):
        total = total * size + i
    return total


def unflattened(position: Dim, dims: Sequence[Dim], bounds: Bounds) -> tuple[Dim, ...]:
    """The index of a row-major position."""
    index: list[Dim] = []
    for axis, size in reversed(list(enumerate(dims))):
        index.append(remainder(position, size, bounds) if axis else position)
        position = quotient(position, size, bounds)
    return tuple(reversed(index))


def quotient(num: Dim, den: Dim, bounds: Bounds) -> Dim:
    """`num // den`, without what the bounds say is nothing."""
    whole, rest = _split(num, den)
    if _fits(rest, den, bounds):
        return whole
    if _fits(rest + den, den, bounds):
        return whole - 1
    common = _common(rest, den, bounds)
    if common is not None:
        high, _, factor = common
        return whole + quotient(high, den // factor, bounds)
    return whole + _atom("//", rest, den)


def remainder(num: Dim, den: Dim, bounds: Bounds) -> Dim:
    """`num % den`, without what the bounds say is nothing."""
    rest = _split(num, den)[1]
    if _fits(rest, den, bounds):
        return rest
    if _fits(rest + den, den, bounds):
        return rest + den
    common = _common(rest, den, bounds)
    if common is not None:
        high, low, factor = common
        return remainder(high, den // factor, bounds) * factor + low
    return _atom("%", rest, den)


def simplified(dim: Dim, bounds: Bounds) -> Dim:
    """The same number with fewer divisions: `n // 8 * 8 + n % 8` is n."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        term: Dim = factor
        for atom in monomial:
            if isinstance(atom, Sym):
                term = term * sym(atom.name)
            else:
                again = quotient if atom.op == "//" else remainder
                term = term * again(simplified(atom.num, bounds), simplified(atom.den, bounds), bounds)
        total = total + term
    changed = True
    while changed:
        total, changed = _recombined(total)
    return total


def strides(dim: Dim, axes: Sequence[str]) -> tuple[Dim, tuple[Dim, ...]] | None:
    """`(start, steps)` with dim = start + sum(axis * step); None where it is not of that form."""
    zero: dict[str, Dim] = dict.fromkeys(axes, 0)
    start = substitute(dim, zero)
    steps: list[Dim] = []
    rest = dim - start
    for axis in axes:
        step = substitute(dim, {**zero, axis: 1}) - start
        steps.append(step)
        rest = rest - step * sym(axis)
    return (start, tuple(steps)) if rest == 0 else None


def terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    """Monomials and their factors."""
    return dim.terms if isinstance(dim, Expr) else (((), dim),) if dim else ()


def _one(monomial: Monomial, factor: int) -> Dim:
    return Expr(((monomial, factor),)) if monomial else factor


def _atom(op: str, num: Dim, den: Dim) -> Dim:
    if isinstance(num, int) and isinstance(den, int):
        return num // den if op == "//" else num % den
    return Expr((((Div(op, num, den),), 1),))


def _split(num: Dim, den: Dim) -> tuple[Dim, Dim]:
    """`(whole, rest)` with num = whole * den + rest, term by term."""
    whole: Dim = 0
    rest: Dim = 0
    for monomial, factor in terms(num):
        term = _one(monomial, factor)
        exact = divide(term, den)
        if exact is not None:
            whole = whole + exact
        elif isinstance(den, int) and abs(factor) >= den > 0:
            whole = whole + _one(monomial, factor // den)
            rest = rest + _one(monomial, factor % den)
        else:
            rest = rest + term
    return whole, rest


def _common(num: Dim, den: Dim, bounds: Bounds) -> tuple[Dim, Dim, int] | None:
    """`(high, low, factor)` with num = high * factor + low and 0 <= low < factor, where factor divides den: of num, then, only
    `high` is divided. None where there is no such factor."""
    if not isinstance(den, int):
        return None
    factors = {math.gcd(factor, den) for _, factor in terms(num)} - {1}
    for common in sorted(factors, reverse=True):
        high: Dim = 0
        low: Dim = 0
        for monomial, factor in terms(num):
            if factor % common:
                low = low + _one(monomial, factor)
            else:
                high = high + _one(monomial, factor // common)
        if _fits(low, common, bounds):
            return high, low, common
    return None


def _fits(dim: Dim, size: Dim, bounds: Bounds) -> bool:
    """Whether 0 <= dim < size for certain."""
    least, greatest = _range(dim, bounds)
    return _at_least(least, 0) and _at_least(size - greatest, 1)


def _range(dim: Dim, bounds: Bounds) -> tuple[Dim, Dim]:
    """Least and greatest value, as expressions in sizes."""
    least: Dim = 0
    greatest: Dim = 0
    for monomial, factor in terms(dim):
        low: Dim = 1
        high: Dim = 1
        for atom in monomial:
            bottom, top = _atom_range(atom, bounds)
            low, high = low * bottom, high * top
        least = least + factor * (low if factor > 0 else high)
        greatest = greatest + factor * (high if factor > 0 else low)
    return least, greatest


def _atom_range(atom: Atom, bounds: Bounds) -> tuple[Dim, Dim]:
    if isinstance(atom, Sym):
        size = bounds.get(atom.name)
        return (sym(atom.name), sym(atom.name)) if size is None else (0, size - 1)
    least, greatest = _range(atom.num, bounds)
    if atom.op == "%":
        return 0, atom.den - 1
    return (0 if _at_least(least, 0) else _atom("//", least, atom.den)), quotient(greatest, atom.den, bounds)


def _at_least(dim: Dim, least: int) -> bool:
    """Whether an expression in sizes (each 1 or more) is certainly no less."""
    total = 0
    for monomial, factor in terms(dim):
        if monomial and (factor < 0 or any(isinstance(a, Div) for a in monomial)):
            return False
        total += factor
    return total >= least


def _recombined(dim: Dim) -> tuple[Dim, bool]:
    """One pair `q * d * (a // d) + q * (a % d)` as `q * a`."""
    for monomial, _ in terms(dim):
        for atom in monomial:
            if isinstance(atom, Sym) or atom.op != "%":
                continue
            part = _cofactor(dim, atom)
            partner = Div("//", atom.num, atom.den)
            if _cofactor(dim, partner) == part * atom.den:
                rest = dim - part * _atom("%", atom.num, atom.den) - part * atom.den * _atom("//", atom.num, atom.den)
                return rest + part * atom.num, True
    return dim, False


def _cofactor(dim: Dim, atom: Atom) -> Dim:
    """What the atom is multiplied by, where it stands alone in its power."""
    total: Dim = 0
    for monomial, factor in terms(dim):
        if monomial.count(atom) == 1:
            rest = list(monomial)
            rest.remove(atom)
            total = total + _one(tuple(rest), factor)
    return total
