"""Loading a graph into ONNX Runtime, with its failures turned into clear errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ingot.errors import ArtifactError, GenerateError

Array = NDArray[Any]

NUMPY: dict[str, type[np.generic]] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bool": np.bool_,
    "i64": np.int64, "i32": np.int32, "i16": np.int16, "i8": np.int8,
    "u64": np.uint64, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8,
}
"""The numpy type of each element type that can cross the graph's border; 4-bit caches are packed in u8."""

_QUIET = 4
_ALIGN = 64


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a manifest dtype; ArtifactError for one that cannot be an input or output."""
    if name not in NUMPY:
        raise ArtifactError(f"the runtime has no arrays of type {name}", hint=f"it has: {', '.join(NUMPY)}")
    return np.dtype(NUMPY[name])


def zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """A zeroed array that starts on a cache line; pages nobody touches cost no memory."""
    item = numpy_dtype(dtype)
    size = int(np.prod(shape)) * item.itemsize
    raw = np.zeros(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size].view(item).reshape(shape)


def value(array: Array) -> Any:
    """An OrtValue over the memory of `array` (C-contiguous, kept alive by the value): writes show on both sides."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


class Graph:
    """One ONNX graph, loaded and ready to run on the CPU."""

    def __init__(self, file: Path, *, threads: int | None = None, weights: Path | None = None) -> None:
        """file: the .onnx file. threads: within one operator; None lets ONNX Runtime choose, one per core.

        weights: the folder of the weights files, when it is not the graph's.
        ArtifactError when ONNX Runtime cannot load the graph.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET  # every failure is raised, so printing it as well is noise
        options.intra_op_num_threads = threads or 0
        try:
            model: str | bytes = str(file)
            if weights is not None:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
                model = file.read_bytes()
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base below Exception
            raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {_first_line(error)}",
                                where=str(file), hint="compile the model again with this version") from error

    @property
    def inputs(self) -> dict[str, list[int | str | None]]:
        """Dims of every input by name; a string is a symbol, None a size the graph does not name."""
        return {port.name: list(port.shape) for port in self._session.get_inputs()}

    @property
    def outputs(self) -> dict[str, list[int | str | None]]:
        """Dims of every output by name, as of inputs."""
        return {port.name: list(port.shape) for port in self._session.get_outputs()}

    def binding(self) -> Any:
        """A new, empty IOBinding of this graph."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        """Runs on the buffers bound in `binding`; GenerateError when an operator fails."""
        try:
            # Without RunOptions: the binding looks an entry up in them, at the price of a C++ exception (40 us a step).
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise GenerateError(f"ONNX Runtime failed in the graph: {_first_line(error)}") from error

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in graph order; GenerateError when an operator fails."""
        try:
            outputs: Any = self._session.run(None, dict(inputs))
        except Exception as error:
            raise GenerateError(f"ONNX Runtime failed in the graph: {_first_line(error)}") from error
        return list(outputs)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
