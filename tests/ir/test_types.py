"""Element types and their promotion, broadcasting, tensor types."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.dims import sym
from ingot.ir.types import (
    DTYPES,
    DType,
    TensorType,
    bf16,
    bool_,
    broadcast,
    dtype_of,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    promote,
    u3,
    u8,
)

TORCH = {f64: torch.float64, f32: torch.float32, f16: torch.float16, bf16: torch.bfloat16, i64: torch.int64, i32: torch.int32,
         i16: torch.int16, i8: torch.int8, u8: torch.uint8, bool_: torch.bool}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(TORCH, TORCH)), ids=str)
@pytest.mark.parametrize(("m", "n"), [(0, 0), (1, 0), (0, 1), (1, 2)])
def test_promotion_is_torchs(a: DType, b: DType, m: int, n: int) -> None:
    x, y = torch.ones((1,) * m, dtype=TORCH[a]), torch.ones((1,) * n, dtype=TORCH[b])
    got = promote(TensorType(a, (1,) * m), TensorType(b, (1,) * n))
    assert TORCH[got] == (x + y).dtype


def test_dtypes_round_trip_through_numpy() -> None:
    for dtype in DTYPES.values():
        assert dtype_of(dtype.numpy) == (u8 if dtype == u3 else dtype)
    with pytest.raises(IRError, match="no element type for numpy complex64"):
        dtype_of(np.dtype(np.complex64))


SHAPES = st.lists(st.integers(1, 3), max_size=4).map(tuple)


@given(st.lists(SHAPES, min_size=1, max_size=3))
def test_broadcast_is_numpys(shapes: list[tuple[int, ...]]) -> None:
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(IRError, match="do not broadcast"):
            broadcast(*shapes)
        return
    assert broadcast(*shapes) == expected


def test_dynamic_dims_broadcast_with_one_and_themselves_only() -> None:
    B, S = sym("B"), sym("S")
    assert broadcast((B, 1, 4), (S, 1)) == (B, S, 4)
    with pytest.raises(IRError, match=r"\[B, 4\] with \[S, 4\]"):
        broadcast((B, 4), (S, 4))


def test_tensor_type() -> None:
    S = sym("S")
    assert str(TensorType(f32, (S, 2 * S, 3))) == "f32[S, 2*S, 3]"
    assert TensorType(f32, (S, 2 * S, 3)).size == 6 * S * S
    assert TensorType(f32, ()).size == 1
    with pytest.raises(IRError, match="symbolic dims"):
        _ = TensorType(f32, (S,)).shape
