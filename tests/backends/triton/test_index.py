"""Index arithmetic: what is simplified stays the same number."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ingot.backends.triton.index import flattened, simplified, strides, unflattened
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
