"""Running a module, or a written model, in onnxruntime on the CPU: for tests, checks and bisecting."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ingot.backends.onnx.border import brought_in, brought_out
from ingot.backends.onnx.writer import write
from ingot.errors import IRError
from ingot.ir.module import Func, Module

_FATAL = 4


def open_session(path: Path | str, *, optimize: bool = True, threads: int = 1) -> Any:
    """An InferenceSession over a model file; without `optimize`, the graph runs as written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(module: Module, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray], *, func: Func | None = None,
        opset_only: bool = False, optimize: bool = True) -> list[np.ndarray]:
    """The returns of a func (the main one) as onnxruntime computes them, through a temporary directory.

    inputs: one array per parameter, in order or by name. Results are in the types in which they cross the graph's
    border (bf16 as f32). Raises UnsupportedOp for an op without a lowering.
    """
    func = func or module.main
    names = [p.hint or "" for p in func.params]
    given = [inputs[n] for n in names] if isinstance(inputs, Mapping) else list(inputs)
    if len(given) != len(names):
        raise IRError(f"func @{func.name} takes {len(names)} inputs, {len(given)} given")
    with tempfile.TemporaryDirectory() as directory:
        session = open_session(write(module, directory, func=func, opset_only=opset_only).model, optimize=optimize)
        feed = {taken.name: brought_in(np.asarray(array), param.type)
                for taken, param, array in zip(session.get_inputs(), func.params, given, strict=True)}
        found = session.run(None, feed)
    return [brought_out(array, value.type) for array, value in zip(found, func.returns, strict=True)]
