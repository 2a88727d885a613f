"""Dimensions: integers, or canonical integer polynomials of named symbols.

A `Dim` is an `int` or an `Expr`. An `Expr` is a sum of monomials of atoms with integer coefficients, where an atom is
a symbol, or a floor division or a remainder of two dims. Two dims are equal exactly when their canonical forms are.
Arithmetic raises IRError where a dim would outgrow the limits below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ingot.errors import IRError

MOST_TERMS, HIGHEST_DEGREE, DEEPEST, LARGEST = 256, 32, 16, 1 << 63
"""What a dimension may grow to: terms of its sum, factors of a term, divisions in divisions, and (below) its coefficients.

Models have a few; the limits keep a text of some lines from a polynomial that fills the memory."""


@dataclass(frozen=True)
class Sym:
    """A named dimension; its range is declared on the module."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Div:
    """An atom `num // den` (`op == "//"`) or `num % den` (`op == "%"`) that did not simplify."""

    op: str
    num: Dim
    den: Dim

    def __str__(self) -> str:
        return f"{_atomic(self.num)} {self.op} {_atomic(self.den)}"


Atom = Sym | Div
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Expr:
    """A non-constant polynomial; `terms` is sorted and free of zero coefficients."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def _text(self) -> str:
        parts = [_term(monomial, factor) for monomial, factor in self.terms]
        text = parts[0]
        for part in parts[1:]:
            text += f" - {part[1:]}" if part.startswith("-") else f" + {part}"
        return text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Dim({self._text})"

    @cached_property
    def depth(self) -> int:
        """How deep divisions stand in divisions; 0 without any."""
        divisions = [atom for monomial, _ in self.terms for atom in monomial if isinstance(atom, Div)]
        return max((1 + part.depth for d in divisions for part in (d.num, d.den) if isinstance(part, Expr)), default=0)

    def __add__(self, other: Dim) -> Dim:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _canonical(total)

    def __mul__(self, other: Dim) -> Dim:
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right, key=str))
                total[monomial] = total.get(monomial, 0) + a * b
        return _canonical(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + -1 * other

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)


Dim = int | Expr


def sym(name: str) -> Expr:
    """The dimension that is the symbol `name` alone."""
    return Expr((((Sym(name),), 1),))


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """The product of all `dims` (1 for none)."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def floordiv(num: Dim, den: Dim) -> Dim:
    """`num // den`, divided term by term where that is exact. Raises IRError when `den` is zero."""
    if den == 0:
        raise IRError(f"dimension {num} is divided by zero")
    if isinstance(num, int) and isinstance(den, int):
        return num // den
    exact = divide(num, den)
    if exact is not None:
        return exact
    if isinstance(den, int):
        if den < 0:
            return floordiv(-num, -den)
        whole, rest = _split(num, den)
        if whole != 0:
            return whole + floordiv(rest, den)
    return _division("//", num, den)


def mod(num: Dim, den: Dim) -> Dim:
    """`num % den`, zero where the division is exact. Raises IRError when `den` is zero."""
    if den == 0:
        raise IRError(f"dimension {num} is divided by zero")
    if isinstance(num, int) and isinstance(den, int):
        return num % den
    if divide(num, den) is not None:
        return 0
    if isinstance(den, int):
        if den < 0:
            return -mod(-num, -den)
        num = _split(num, den)[1]
        if isinstance(num, int):
            return num % den
    return _division("%", num, den)


def _division(op: str, num: Dim, den: Dim) -> Expr:
    made = Expr((((Div(op, num, den),), 1),))
    if made.depth > DEEPEST:
        raise IRError(f"a dimension has more than {DEEPEST} divisions in divisions")
    return made


def _split(num: Dim, den: int) -> tuple[Dim, Dim]:
    """`(q, r)` with `num == q * den + r`, where r keeps the coefficients reduced modulo den."""
    whole = {monomial: factor // den for monomial, factor in _terms(num)}
    rest = {monomial: factor % den for monomial, factor in _terms(num)}
    return _canonical(whole), _canonical(rest)


def divide(num: Dim, den: Dim) -> Dim | None:
    """The exact quotient when `den` is one term dividing every term of `num` (or equals it), else None."""
    if num == den:
        return 1
    terms = _terms(den)
    if len(terms) != 1:
        return None
    (monomial, factor) = terms[0]
    out: dict[Monomial, int] = {}
    for top, count in _terms(num):
        rest = list(top)
        for atom in monomial:
            if atom not in rest:
                return None
            rest.remove(atom)
        if factor == 0 or count % factor:
            return None
        out[tuple(rest)] = count // factor
    return _canonical(out)


def symbols(dim: Dim) -> Iterator[str]:
    """Names of the symbols a dim is made of."""
    for monomial, _ in _terms(dim):
        for atom in monomial:
            if isinstance(atom, Sym):
                yield atom.name
            else:
                yield from symbols(atom.num)
                yield from symbols(atom.den)


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The integer value of a dim. Raises IRError when `env` lacks one of its symbols."""
    value = substitute(dim, env)
    if isinstance(value, int):
        return value
    missing = sorted(set(symbols(value)))
    raise IRError(f"dimension {dim} needs a value for {', '.join(missing)}")


def substitute(dim: Dim, env: Mapping[str, Dim]) -> Dim:
    """The dim with symbols replaced by other dims."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        term: Dim = factor
        for atom in monomial:
            if isinstance(atom, Sym):
                term = term * env.get(atom.name, sym(atom.name))
            else:
                num, den = substitute(atom.num, env), substitute(atom.den, env)
                term = term * (floordiv(num, den) if atom.op == "//" else mod(num, den))
        total = total + term
    return total


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Expr):
        return dim.terms
    return (((), int(dim)),) if dim else ()


def _canonical(total: dict[Monomial, int]) -> Dim:
    kept = [(monomial, factor) for monomial, factor in total.items() if factor]
    if len(kept) > MOST_TERMS or any(len(monomial) > HIGHEST_DEGREE or abs(factor) >= LARGEST for monomial, factor in kept):
        raise IRError(f"a dimension has more than {MOST_TERMS} terms, a degree above {HIGHEST_DEGREE} or a number of 64 bits")
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    kept.sort(key=lambda item: (-len(item[0]), tuple(str(atom) for atom in item[0])))
    return Expr(tuple(kept))


def _term(monomial: Monomial, factor: int) -> str:
    if not monomial:
        return str(factor)
    body = "*".join(f"({atom})" if isinstance(atom, Div) and (len(monomial) > 1 or factor != 1) else str(atom)
                    for atom in monomial)
    if factor == 1:
        return body
    return f"-{body}" if factor == -1 else f"{factor}*{body}"


def _atomic(dim: Dim) -> str:
    simple = isinstance(dim, int) or (len(dim.terms) == 1 and dim.terms[0][1] == 1
                                      and len(dim.terms[0][0]) == 1 and isinstance(dim.terms[0][0][0], Sym))
    return str(dim) if simple else f"({dim})"
