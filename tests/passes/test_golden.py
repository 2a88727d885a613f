"""Golden cases: text in, pipeline, text out; and the contracts of exact passes on every one of them."""

from __future__ import annotations

import contextlib

import pytest

from ingot.errors import IngotError, PassError
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline


def apply(text: str, pipeline: str) -> str:
    module = parse_module(text)
    for p in parse_pipeline(pipeline):
        p.run(module, Context())
        verify(module)
    return print_module(module).partition("\n")[2]


def test_text(case, rewrite_case):
    if case.error:
        with pytest.raises(IngotError) as caught:
            apply(case.before, case.pipeline)
        assert case.error in str(caught.value)
        return
    found = apply(case.before, case.pipeline)
    if rewrite_case is not None:
        rewrite_case(case, found)
        return
    assert found == case.after


def test_contract(case, check_exact):
    """Exact passes leave the float64 reference alone and find nothing to do in their own result."""
    if case.error or any(p.contract != "exact" for p in parse_pipeline(case.pipeline)):
        return
    check_exact(parse_module(case.before), case.pipeline)
    last = str(parse_pipeline(case.pipeline)[-1])
    with contextlib.suppress(PassError):  # a fusion asked for by name finds nothing the second time
        assert apply(case.after, last) == case.after
