"""Random graphs of many ops: torch and onnxruntime against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.ir import interpret
from ingot.ir.module import Module
from ingot.ir.text import print_module
from ingot.testing import graphs, inputs_for
from tests.backends.differential import distance, outputs

LIMITS = {"bf16": 0.3, "f16": 0.05, "f32": 2e-5}
"""By the narrowest float in the graph: each of a handful of ops may lose a few units in the last place, which add up."""


@pytest.mark.parametrize("backend", ["torch-f64", "torch", "ort", "ort-as-written"])
def test_random_graphs(backend: str) -> None:
    torch.set_num_threads(1)

    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs(), st.integers(0, 99))
    def check(module: Module, seed: int) -> None:
        inputs = list(inputs_for(module, np.random.default_rng(seed)).values())
        values = [*module.main.params, *(v for op in module.main.ops for v in (*op.operands, *op.results))]
        narrowest = next((n for n in LIMITS if any(v.type.dtype.name == n for v in values)), "f32")
        limit = 1e-9 if backend == "torch-f64" else LIMITS[narrowest]
        for got, wanted in zip(outputs(backend, module, inputs), interpret.run(module, inputs), strict=True):
            assert distance(np.asarray(got), wanted) <= limit, print_module(module)

    check()
