"""Weights that passes have computed, whose numbers lie in temporary files rather than in memory."""

from __future__ import annotations

import tempfile

import numpy as np

from ingot.ir.types import DType
from ingot.ir.weights import ArrayWeight, call


def stored(name: str, array: np.ndarray, made_by: str, dtype: DType | None = None) -> ArrayWeight:
    """An array as a weight; its file goes when it does. dtype: where the array's own type does not tell."""
    kept = array
    if array.ndim:
        with tempfile.TemporaryFile() as file:
            np.ascontiguousarray(array).tofile(file)
            file.flush()
            kept = np.memmap(file, array.dtype, "r", shape=array.shape)
    return ArrayWeight(kept, call("computed", **{"pass": made_by, "key": name}), dtype)
