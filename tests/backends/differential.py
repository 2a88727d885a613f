"""One module run by the reference and by every backend, and compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ingot.backends import onnx as onnx_backend
from ingot.backends import torch as torch_backend
from ingot.backends.torch.tensors import to_array
from ingot.ir import interpret
from ingot.ir.module import Module
from ingot.ir.types import DTYPES
from tests.backends.tolerance import coarsest, distance, tolerance

BACKENDS = ("declared", "torch", "torch-f64", "ort", "ort-as-written", "ort-contrib")


def outputs(backend: str, module: Module, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a backend computes. declared: the reference with every result rounded to its type."""
    if backend == "declared":
        return interpret.run(module, inputs, precision="declared")
    if backend.startswith("torch"):
        dtype = torch.float64 if backend == "torch-f64" else None
        return [to_array(t) for t in torch_backend.run(module, inputs, dtype=dtype)]
    return onnx_backend.run(module, inputs, opset_only=backend != "ort-contrib", optimize=backend != "ort-as-written")


def differential(module: Module, inputs: Sequence[np.ndarray], *, op: str, backends: Sequence[str] = BACKENDS) -> None:
    """Raises AssertionError, naming backend and result, when one is further from the reference than the table allows."""
    wanted = interpret.run(module, inputs, precision="f64")
    types = [v.type for v in module.main.returns]
    worst = coarsest([*(v.type.dtype for o in module.main.ops for v in (*o.operands, *o.results)), *(t.dtype for t in types)])
    for backend in backends:
        got = outputs(backend, module, inputs)
        for i, (mine, ours, type_) in enumerate(zip(got, wanted, types, strict=True)):
            dtype = type_.dtype
            if dtype.is_float:
                dtype = DTYPES["f64"] if backend == "torch-f64" else worst
            limit = tolerance(op, dtype.name, backend)
            error = distance(np.asarray(mine), ours)
            assert error <= limit.part, (f"{op}: result {i} ({type_}) of {backend} is off by {error:.3g}, "
                                         f"allowed {limit.part:.3g} ({limit.reason})")


__all__ = ["BACKENDS", "differential", "distance", "outputs"]
