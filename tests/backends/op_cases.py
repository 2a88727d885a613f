"""Every case of every op."""

from tests.backends import cases_attention, cases_compute, cases_layout, cases_pointwise
from tests.backends.op_case import CASES, OpCase

__all__ = ["CASES", "OpCase", "cases_attention", "cases_compute", "cases_layout", "cases_pointwise"]
