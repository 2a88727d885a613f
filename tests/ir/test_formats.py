"""Quantised formats: codes pack and unpack, decoding is within half a step of what was encoded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.formats import FORMATS, format_named, grouped, pack_bits, unpack_bits


@given(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packed_codes_unpack(bits: int, n: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (2, 3, n), dtype=np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (2, 3, (n * bits + 7) // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, n), codes)


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    assert pack_bits(np.array([[0x1, 0x2, 0xF]], np.uint8), 4).tolist() == [[0x21, 0x0F]]
    assert pack_bits(np.array([1, 2, 3, 0], np.uint8), 2).tolist() == [0b00_11_10_01]
    assert pack_bits(np.array([1, 2, 4], np.uint8), 3).tolist() == [0b00_010_001, 0b1]


@given(st.integers(1, 20), st.integers(1, 9))
def test_groups_are_padded_with_zeros(n: int, group: int) -> None:
    x = np.arange(1, 2 * n + 1).reshape(2, n)
    y = grouped(x, group)
    assert y.shape == (2, -(-n // group), group)
    flat = y.reshape(2, -1)
    np.testing.assert_array_equal(flat[:, :n], x)
    assert not flat[:, n:].any()


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**32 - 1), magnitude=st.floats(1e-6, 1e6), zeros=st.booleans())
def test_decoding_is_within_half_a_step(name: str, seed: int, magnitude: float, zeros: bool) -> None:
    fmt = format_named(name)
    rng = np.random.default_rng(seed)
    w = grouped(rng.normal(size=(3, 24)) * magnitude, 8)
    if zeros:
        low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
        scale = (high - low) / (fmt.levels - 1)
        zero = np.rint(-low / scale)
        limit = 1.001 * scale  # rounding of the zero point moves the range by up to half a step, clipping takes it
    else:
        scale, zero = np.abs(w).max(-1, keepdims=True) / (fmt.middle - 1), None
        limit = 0.501 * scale
    codes = fmt.encode(w, scale, zero)
    assert codes.max() < fmt.levels
    assert (np.abs(fmt.decode(codes, scale, zero) - w) <= limit).all()


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_is_a_fixed_point(name: str) -> None:
    fmt = format_named(name)
    codes = np.arange(fmt.levels, dtype=np.uint8)[None]
    scale = np.full((1, 1), 0.5)
    np.testing.assert_array_equal(fmt.encode(fmt.decode(codes, scale, None), scale, None), codes)
    assert fmt.decode(np.array([[fmt.middle]]), scale, None) == 0


def test_a_scale_of_zero_gives_zeros() -> None:
    fmt = format_named("int4")
    codes = fmt.encode(np.zeros((1, 4)), np.zeros((1, 1)), None)
    assert not fmt.decode(codes, np.zeros((1, 1)), None).any()


def test_unknown_formats_are_listed() -> None:
    with pytest.raises(IRError, match="unknown format int5") as caught:
        format_named("int5")
    assert "int4" in str(caught.value)
