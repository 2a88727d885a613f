"""A module by generated kernels, against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from ingot.backends.torch.tensors import to_array, to_tensor
from ingot.backends.triton import launch
from ingot.backends.triton.module import TritonModule
from ingot.ir import interpret
from ingot.ir.module import Module
from ingot.ir.text import print_module
from ingot.ir.types import DTYPES
from tests.backends.tolerance import Tolerance, coarsest, distance, tolerance


def outputs(compiled: TritonModule, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the kernels compute; inputs are copied, for caches are updated in place."""
    params = compiled.func.params
    tensors = [to_tensor(np.array(a), p.type.dtype) for a, p in zip(inputs, params, strict=True)]
    return [to_array(t) for t in compiled.run(tensors)]


def agree(module: Module, inputs: Sequence[np.ndarray], *, op: str = "", limit: float | None = None,
          compiled: TritonModule | None = None) -> TritonModule:
    """Raises AssertionError when a result is further from the float64 reference than the table (or `limit`) allows."""
    compiled = compiled or TritonModule(module, device="cpu")
    values = [*module.main.params, *(v for o in module.main.ops for v in (*o.operands, *o.results))]
    worst = coarsest([v.type.dtype for v in values])
    wanted = interpret.run(module, inputs, precision="f64")
    for i, (got, want, value) in enumerate(zip(outputs(compiled, inputs), wanted, module.main.returns, strict=True)):
        dtype = value.type.dtype
        allowed = tolerance(op, (worst if dtype.is_float else DTYPES[dtype.name]).name, "triton")
        if limit is not None and dtype.is_float:
            allowed = Tolerance(limit, "given")
        error = distance(got, want)
        assert error <= allowed.part, (f"{op}: result {i} ({value.type}) is off by {error:.3g}, allowed {allowed.part:.3g}\n"
                                       f"{print_module(module)}\n{compiled.source}")
    return compiled


@contextmanager
def changed(old: str, new: str) -> Iterator[None]:
    """Within it, all generated source is changed before it is loaded."""
    def load(source: str) -> dict[str, Any]:
        assert old in source
        return launch.loaded(source.replace(old, new))

    with patch("ingot.backends.triton.module.loaded", load):
        yield
