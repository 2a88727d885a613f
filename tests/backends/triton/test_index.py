"""Index arithmetic: what is simplified stays the same number."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ingot.backends.triton.index import flattened, quotient, remainder, simplified, strides, unflattened
from ingot.ir.dims import Dim, Div, Expr, evaluate, sym

B, S, n, r, c = (sym(x) for x in "BSnrc")
BOUNDS: dict[str, Dim] = {"n": B * S * 12, "r": B * S, "c": 12}


def divisions(dim: Dim) -> int:
    return 0 if isinstance(dim, int) else sum(isinstance(a, Div) for monomial, _ in dim.terms for a in monomial)


def test_a_contiguous_tensor_is_read_at_the_position_itself() -> None:
    index = unflattened(n, (B, S, 12), BOUNDS)
    assert simplified(flattened(index, (B, S, 12)), BOUNDS) == n
    heads = unflattened(simplified(flattened(index, (B, S, 12)), BOUNDS), (B, S, 3, 4), BOUNDS)
    assert simplified(flattened(heads, (B, S, 3, 4)), BOUNDS) == n


def test_rows_and_columns_need_no_division() -> None:
    index = (*unflattened(r, (B, S), BOUNDS), c)
    assert simplified(flattened(index, (B, S, 12)), BOUNDS) == r * 12 + c
    assert strides(r * 12 + c + 3, ["r", "c"]) == (3, (12, 1))
    assert strides(simplified(Expr((((Div("//", c, 4),), 1),)), BOUNDS), ["c"]) is None


def test_a_transposed_tensor_keeps_its_divisions() -> None:
    b, h, s, d = unflattened(n, (B, 3, S, 4), BOUNDS)
    assert divisions(simplified(flattened((b, s, h, d), (B, S, 3, 4)), BOUNDS)) > 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.permutations(range(4)), st.integers(0, 10_000),
       st.sampled_from([2, 3, 4, 6]))
def test_simplifying_changes_no_number(dims: list[int], order: list[int], seed: int, width: int) -> None:
    """A reshape, a transpose and a flattening, symbolic and in numbers."""
    sizes = {f"D{i}": d for i, d in enumerate(dims)}
    shape: list[Dim] = [sym(name) for name in sizes]
    perm = [i for i in order if i < len(dims)]
    total = math.prod(dims) * width
    bounds: dict[str, Dim] = {"n": flattened([d - 1 for d in shape], shape) * width + width}
    index = unflattened(n, (*shape, width), bounds)
    moved = flattened([index[i] for i in perm] + [index[-1]], [shape[i] for i in perm] + [width])
    position = seed % total
    env = sizes | {"n": position}
    assert evaluate(simplified(moved, bounds), env) == evaluate(moved, env)
    assert evaluate(simplified(flattened(index, (*shape, width)), bounds), env) == position


def test_a_common_factor_is_taken_out() -> None:
    """The heads of a fused projection, and the codes of a block of 32 in a row of heads of 128."""
    bounds: dict[str, Dim] = {"d": 128, "h": 8, "row": S * 4, "k": 512, "part": 8}
    d, h, row, k, part = (sym(x) for x in ("d", "h", "row", "k", "part"))
    at = d + h * 512 + quotient(row, S, bounds) * 128
    assert (quotient(at, 4096, bounds), remainder(at, 4096, bounds)) == (0, at)
    block, place = quotient(k, 4, bounds), remainder(k, 4, bounds)
    element = block * 32 + part * 4 + place
    assert quotient(element, 128, bounds) == quotient(block, 4, bounds)
    assert remainder(element, 128, bounds) == remainder(block, 4, bounds) * 32 + part * 4 + place


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(-3, 40)), min_size=1, max_size=4), st.integers(-3, 40),
       st.sampled_from([2, 3, 4, 6, 8, 12, 32]), st.randoms(use_true_random=False))
def test_division_by_a_number(axes: list[tuple[int, int]], start: int, den: int, random: Random) -> None:
    """Of sums of axes times factors, where they are not negative: at any place of the axes."""
    num: Dim = start
    for i, (_, factor) in enumerate(axes):
        num = num + factor * sym(f"a{i}")
    bounds: dict[str, Dim] = {f"a{i}": bound for i, (bound, _) in enumerate(axes)}
    for _ in range(5):
        env = {f"a{i}": random.randrange(bound) for i, (bound, _) in enumerate(axes)}
        value = evaluate(num, env)
        assert evaluate(quotient(num, den, bounds), env) == value // den
        assert evaluate(remainder(num, den, bounds), env) == value % den
