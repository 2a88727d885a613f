"""torch's size expressions as dims."""

from __future__ import annotations

import pytest
import sympy
from torch.utils._sympy.functions import CeilDiv, FloorDiv, Max, Min, Mod

from ingot.errors import UnsupportedOp
from ingot.frontend.dimensions import Sizes

A, B = sympy.Symbol("s0", integer=True, positive=True), sympy.Symbol("s1", integer=True, positive=True)
SIZES = Sizes({"s0": "S", "s1": "B"}, {"S": (1, 8), "B": (1, 4)})


@pytest.mark.parametrize(("expression", "text"), [
    (sympy.Integer(7), "7"),
    (A, "S"),
    (2 * A * B + 1, "2*B*S + 1"),
    (A - 1, "S - 1"),
    (A**3, "S*S*S"),
    (FloorDiv(A + 1, 2), "(S + 1) // 2"),
    (CeilDiv(A, 4), "(S + 3) // 4"),
    (Mod(A, 3), "S % 3"),
    (Max(0, A - 1), "S - 1"),
    (Min(A, 8), "S"),
    (Max(0, 1 - A), "0"),
    (Min(8 * B, A), "S"),
])
def test_expressions(expression: sympy.Expr, text: str) -> None:
    assert str(SIZES.dim(expression)) == text


@pytest.mark.parametrize("expression", [Max(A, B), Min(A, 4), sympy.Rational(1, 2) * A, sympy.sqrt(A)])
def test_what_no_dim_says_is_refused(expression: sympy.Expr) -> None:
    with pytest.raises(UnsupportedOp, match="the size"):
        SIZES.dim(expression)


def test_a_size_that_depends_on_the_data_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match=r"depends on the data \(u0\)"):
        SIZES.dim(sympy.Symbol("u0", integer=True) + A)
