"""Every op in several element types and shapes: generated kernels agree with the reference."""

from __future__ import annotations

import pytest

from tests.backends.op_cases import CASES, OpCase
from tests.backends.triton.interpreted.check import agree

IN_TORCH = {"conv", "avg_pool", "max_pool", "topk", "cumsum", "prod"}
"""Ops without a kernel."""
REASONS = ("f64", "coded steps", "outputs differ in size", "padding by", "different rows", "argmax of i64", "argmin of i64",
           "integer powers")
"""Why single cases of other ops have none: words of what is said about them."""


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.name}".replace(" ", "_"))
def test_op(case: OpCase) -> None:
    made = case.make()
    compiled = None
    for sizes in case.sizes:
        compiled = agree(made.module, made.inputs(sizes), op=case.op, compiled=compiled)
    assert compiled is not None
    for op, reason in compiled.fallbacks:
        assert op in IN_TORCH or any(words in reason for words in REASONS), reason
