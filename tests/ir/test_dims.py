"""Dims: canonical forms never change a value, equal forms have equal values, and the text of a dim reads back as it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.dims import Dim, Expr, divide, evaluate, floordiv, mod, product, substitute, sym, symbols
from ingot.ir.text import parse_module

NAMES = ["B", "S", "T"]
B, S, T = map(sym, NAMES)
ENV = st.fixed_dictionaries({n: st.integers(1, 40) for n in NAMES})


@dataclass(frozen=True)
class Tree:
    """A dim as written, before canonicalisation: a leaf (int or name) or an operator with two trees."""

    op: str
    left: Tree | int | str
    right: Tree | int | str


OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
LEAVES = st.integers(-9, 9) | st.sampled_from(NAMES)
TREES = st.recursive(LEAVES, lambda inner: st.builds(Tree, st.sampled_from(list(OPERATORS)), inner, inner), max_leaves=9)


def build(tree: Tree | int | str) -> Dim:
    """The canonical dim of a tree."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return sym(tree)
    left, right = build(tree.left), build(tree.right)
    if tree.op == "//":
        return floordiv(left, right)
    if tree.op == "%":
        return mod(left, right)
    return {"+": operator.add, "-": operator.sub, "*": operator.mul}[tree.op](left, right)  # type: ignore[no-any-return]


def value(tree: Tree | int | str, env: dict[str, int]) -> int:
    """The value of a tree by plain integer arithmetic. Raises ZeroDivisionError."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return env[tree]
    return OPERATORS[tree.op](value(tree.left, env), value(tree.right, env))


@given(TREES, ENV)
def test_canonical_form_keeps_the_value(tree: Tree | int | str, env: dict[str, int]) -> None:
    try:
        expected = value(tree, env)
    except ZeroDivisionError:
        assume(False)
    try:
        dim = build(tree)
    except IRError:  # a divisor that is zero whatever the symbols are
        assume(False)
    assert evaluate(dim, env) == expected


@given(TREES, TREES, ENV)
def test_equal_forms_have_equal_values(a: Tree | int | str, b: Tree | int | str, env: dict[str, int]) -> None:
    try:
        if build(a) == build(b):
            assert value(a, env) == value(b, env)
    except (IRError, ZeroDivisionError):
        assume(False)


@given(TREES)
def test_text_reads_back_as_the_same_dim(tree: Tree | int | str) -> None:
    try:
        dim = build(tree)
    except IRError:
        assume(False)
    text = f"""module @m {{
  dim B in 1..2
  dim S in 1..2
  dim T in 1..2
  func @f(%x: f32[B, S, T, {dim}]) -> (f32[B, S, T, {dim}]) {{
    return %x
  }}
}}"""
    assert parse_module(text).main.params[0].type.dims[3] == dim


@given(TREES, TREES, TREES)
def test_sums_and_products_are_a_ring(a: Tree | int | str, b: Tree | int | str, c: Tree | int | str) -> None:
    try:
        x, y, z = build(a), build(b), build(c)
    except IRError:
        assume(False)
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0
    assert hash(x + y) == hash(y + x)


@given(TREES, ENV, ENV)
def test_substituting_in_two_steps_is_substituting_at_once(tree: Tree | int | str, env: dict[str, int],
                                                           other: dict[str, int]) -> None:
    try:
        dim = build(tree)
        partial = substitute(dim, {"B": env["B"], "S": T + other["S"]})
        assert evaluate(partial, {"T": env["T"]}) == evaluate(dim, {**env, "S": env["T"] + other["S"]})
    except IRError as error:
        assert "divided by zero" in error.message  # noqa: PT017


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40))
def test_exact_division(a: int, b: int, c: int) -> None:
    assert floordiv(a * b * S * T, a * S) == b * T
    assert mod(a * b * S + b * c, b) == 0
    assert divide(a * S + 1, a * S) is None
    assert floordiv(a * S + c, a) == S + c // a
    assert mod(S + a, a) == mod(S, a)


@pytest.mark.parametrize(("dim", "text"), [
    (S + B, "B + S"), (2 * S - 1, "2*S - 1"), (-S, "-S"), (3 - S * B, "-B*S + 3"), ((S + 3) // 4 * 4, "4*((S + 3) // 4)"),
    (S % 8, "S % 8"), (B * (S // 2), "B*(S // 2)"), ((S // 2) // T, "(S // 2) // T"), (16 // S, "16 // S"),
    (S // -2, "-S + S // 2"), (S % -2, "-(S % 2)"), (product([B, S, 4]), "4*B*S"), (7 % S, "7 % S"),
])
def test_printed_form(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_symbols_and_missing_values() -> None:
    assert set(symbols((S + B) // T + 1)) == {"B", "S", "T"}
    with pytest.raises(IRError, match="needs a value for T"):
        evaluate(S + T, {"S": 3})
    with pytest.raises(IRError, match="divided by zero"):
        floordiv(S, 0)
    with pytest.raises(IRError, match="divided by zero"):
        evaluate(Expr((S // T).terms), {"S": 3, "T": 0})  # type: ignore[union-attr]
