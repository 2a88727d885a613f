"""Random graphs of many ops: generated kernels against the reference, whatever the partition makes of them."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.ir.module import Module
from ingot.testing import graphs, inputs_for
from tests.backends.triton.interpreted.check import agree

LIMITS = {"bf16": 0.3, "f16": 0.05, "f32": 2e-5}
"""By the narrowest float in the graph: each of a handful of ops may lose a few units in the last place, which add up."""


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 99))
def test_random_graphs(module: Module, seed: int) -> None:
    inputs = list(inputs_for(module, np.random.default_rng(seed)).values())
    values = [*module.main.params, *(v for op in module.main.ops for v in (*op.operands, *op.results))]
    narrowest = next((n for n in LIMITS if any(v.type.dtype.name == n for v in values)), "f32")
    agree(module, inputs, limit=LIMITS[narrowest])
