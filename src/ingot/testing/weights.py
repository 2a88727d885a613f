"""Random weights as a Hypothesis strategy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from ingot.ir.types import TensorType, bf16, bool_, f16, f32, f64, i64
from ingot.ir.weights import ArrayWeight


@st.composite
def weights(draw: st.DrawFn, type: TensorType | None = None, *, least: int = -2, most: int = 2) -> ArrayWeight:
    """A weight of `type` (any small one when None) held in memory: numbers in [least, most].

    Floats are multiples of a quarter, so that a dump shows them briefly and every float type holds them.
    """
    if type is None:
        dtype = draw(st.sampled_from([f32, f64, f16, bf16, i64, bool_]))
        type = TensorType(dtype, tuple(draw(st.lists(st.integers(1, 4), max_size=3))))
    size = math.prod(type.shape)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    numbers: np.ndarray
    if type.dtype.is_float:
        numbers = rng.integers(4 * least, 4 * most + 1, size=size) / 4
    elif type.dtype == bool_:
        numbers = rng.integers(0, 2, size=size)
    else:
        span = (max(least, 0) if type.dtype.kind == "uint" else least, min(most, (1 << type.dtype.bits - 1) - 1))
        numbers = rng.integers(*span, size=size, endpoint=True)
    return ArrayWeight(numbers.reshape(type.shape).astype(type.dtype.numpy), dtype=type.dtype)
