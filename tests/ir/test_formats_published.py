"""Formats others have defined: element types as in ml_dtypes, blocks as in the OCP specification, NVFP4 and QLoRA layouts."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.ir.formats import Format, dequantized, format_named, grouped, steps
from ingot.ir.formats.scaling import dynamic_map
from ingot.passes.quantization.rtn import rounded

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FLOATS = {"fp4": ml_dtypes.float4_e2m1fn, "fp8-e4m3": ml_dtypes.float8_e4m3fn, "fp8-e5m2": ml_dtypes.float8_e5m2}
seeds = st.integers(0, 2**32 - 1)


def nearest_even(x: float) -> int:
    """The e2m1 code of x by exact arithmetic: nearest, ties to the even code, beyond the greatest the greatest."""
    size = Fraction(abs(x))
    code = min(range(8), key=lambda c: (abs(Fraction(E2M1[c]) - size), c % 2))
    return code | (8 if math.copysign(1, x) < 0 else 0)


@pytest.mark.parametrize("name", FLOATS)
def test_element_types(name: str) -> None:
    fmt, dtype = format_named(name), np.dtype(FLOATS[name])
    assert fmt.code.numpy == dtype
    bits = np.arange(fmt.levels, dtype=np.uint8)
    np.testing.assert_array_equal(fmt.table(), bits.view(dtype).astype(np.float64))
    assert fmt.peak == float(ml_dtypes.finfo(dtype).max)


@pytest.mark.parametrize("name", FLOATS)
@settings(max_examples=30)
@given(seed=seeds)
def test_codes_are_those_of_ml_dtypes(name: str, seed: int) -> None:
    fmt = format_named(name)
    x = np.random.default_rng(seed).standard_normal(64).astype(np.float32) * np.float32(fmt.peak / 3)
    x = np.clip(x, -fmt.peak, fmt.peak)
    np.testing.assert_array_equal(fmt.encode(x, np.float32(1)).view(np.uint8), x.astype(FLOATS[name]).view(np.uint8))


def test_e2m1_rounds_to_nearest_even_and_keeps_the_sign_of_zero() -> None:
    fmt = format_named("fp4")
    x = np.array([s * v / 64 for v in range(65 * 8) for s in (1.0, -1.0)], np.float32)
    codes = fmt.encode(x, np.float32(1)).view(np.uint8)
    assert codes.tolist() == [nearest_even(float(v)) for v in x]
    assert codes[1] == 8  # minus zero
    np.testing.assert_array_equal(fmt.table(), [*E2M1, *(-v for v in E2M1)])


@settings(max_examples=30)
@given(seed=seeds, exponent=st.integers(-130, 120))
def test_mxfp4_blocks(seed: int, exponent: int) -> None:
    """OCP Microscaling Formats v1.0, section 6.3: a power of two per 32, from the exponent of the greatest element."""
    w = np.ldexp(np.random.default_rng(seed).standard_normal((2, 64)), exponent).astype(np.float32)
    made = rounded(w, format_named("mxfp4"), group=32)
    for row in range(2):
        for block in range(2):
            part = w[row, 32 * block:32 * block + 32].astype(np.float64)
            shared = min(max(math.frexp(np.abs(part).max())[1] - 1 - 2, -127), 127) if part.any() else -127
            assert made.parts["scale"].view(np.uint8)[row, block] == shared + 127
            wanted = [nearest_even(math.ldexp(v, -shared)) for v in part]
            assert made.codes.view(np.uint8)[row, 32 * block:32 * block + 32].tolist() == wanted
    np.testing.assert_array_equal(made.parts["scale"].astype(np.float64)[..., None],
                                  np.ldexp(1.0, made.parts["scale"].view(np.uint8).astype(int) - 127)[..., None])


def test_mxfp4_may_search_one_up() -> None:
    """A block whose greatest element lies at the end of its binade is clipped by the specified scale, and not by twice it."""
    w = np.full((1, 32), 7.9, np.float32)
    fmt = format_named("mxfp4")
    assert rounded(w, fmt, group=32).scales.step.item() == 1
    assert rounded(w, fmt, group=32, search=True).scales.step.item() == 2
    w[0, 1:] = 0.5
    w[0, 0] = 4.0
    assert rounded(w, fmt, group=32, search=True).scales.step.item() == 1


@settings(max_examples=30)
@given(seed=seeds, exponent=st.integers(-30, 30))
def test_nvfp4_blocks(seed: int, exponent: int) -> None:
    """A scale per tensor, amax / (6 * 448), and an e4m3 scale per 16, as ModelOpt and compressed-tensors store them."""
    rng = np.random.default_rng(seed)
    w = np.ldexp(rng.standard_normal((3, 48)) * 10.0 ** rng.integers(-2, 2, (3, 1)), exponent).astype(np.float32)
    fmt = format_named("nvfp4")
    made = rounded(w, fmt, group=16)
    whole = np.abs(w).max() / np.float32(6 * 448)
    blocks = w.reshape(3, 3, 16)
    scale = np.maximum(np.abs(blocks).max(-1) / np.float32(6) / whole, 2.0 ** -9).astype(ml_dtypes.float8_e4m3fn)
    assert made.parts["tensor_scale"] == whole
    np.testing.assert_array_equal(made.parts["scale"].view(np.uint8), scale.view(np.uint8))
    step = scale.astype(np.float32) * whole
    codes = np.clip(blocks / step[..., None], -6, 6).astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(made.codes.view(np.uint8), codes.reshape(3, 48).view(np.uint8))
    packed = fmt.pack(made.codes)  # two to a byte, the first in the low nibble
    raw = made.codes.view(np.uint8)
    np.testing.assert_array_equal(packed, raw[:, ::2] | raw[:, 1::2] << 4)


def test_nvfp4_keeps_groups_far_below_the_greatest() -> None:
    w = np.full((1, 32), 1e-6, np.float32)
    w[0, 16:] = 1.0
    made = rounded(w, format_named("nvfp4"), group=16)
    assert made.parts["scale"].astype(np.float32).tolist() == [[2.0 ** -9, 448.0]]
    assert np.abs(made.decoded()[0, :16] - 1e-6).max() < 1e-6


def test_nf4_takes_the_nearest_and_on_a_tie_the_lower() -> None:
    fmt = format_named("nf4")
    x = np.linspace(-1, 1, 4001).astype(np.float32)
    codes = fmt.encode(x, np.float32(1)).astype(np.int64)
    table = fmt.table()
    distance = np.abs(table[codes] - x)
    assert (distance <= np.abs(table[:, None] - x).min(0) + 3e-8).all()
    assert fmt.encode(np.array([0.0, 1.0, -1.0, 0.7229568362236023]), np.ones(1)).astype(int).tolist() == [7, 15, 0, 14]
    # The borders in bitsandbytes' quantiser, as it writes them.
    borders = ((0.8614784181118011, 14), (0.03979014977812767, 7), (-0.8480964004993439, 0), (-0.04552501812577248, 6))
    for border, lower in borders:
        near = np.float32(border)
        around = np.array([np.nextafter(near, np.float32(-2)), near, np.nextafter(near, np.float32(2))])
        assert fmt.encode(around, np.float32(1)).astype(int).tolist() == [lower, lower, lower + 1]


def test_the_dynamic_map() -> None:
    table = dynamic_map()
    assert table.shape == (256,)
    assert (np.diff(table) > 0).all()
    assert (table[127], table[255]) == (0.0, 1.0)
    # bitsandbytes computes its own in f32, so the last place may differ.
    np.testing.assert_allclose(table[[0, 1, 128, 129, 254]], [-0.99296880, -0.97890627, 5.5e-7, 3.25e-6, 0.99296880], rtol=1e-7)
    np.testing.assert_array_equal(np.sort(-table[:127]), table[128:255])


@settings(max_examples=20)
@given(seed=seeds, count=st.integers(1, 700))
def test_double_quantised_scales(seed: int, count: int) -> None:
    """Codes of scales less their mean, per 256 over the whole weight, and what they stand for."""
    fmt = format_named("nf4")
    scale = np.abs(np.random.default_rng(seed).standard_normal((count, 1))).astype(np.float32)
    made = fmt.settle(scale)
    mean = np.float32(scale.mean(dtype=np.float64))
    assert made.parts["offset"] == mean
    for i, row in enumerate(grouped((scale - mean).reshape(-1), 256)):
        peak = np.abs(row).max()
        assert made.parts["tensor_scale"][i] == peak
        codes = made.parts["scale"].reshape(-1)[256 * i:256 * i + 256]
        x = (row[:len(codes)] / (peak or 1)).astype(np.float64)
        best = np.abs(dynamic_map().astype(np.float64) - x[:, None]).min(-1)
        assert (np.abs(dynamic_map()[codes] - x) <= best + 1e-7).all()
        wanted = dynamic_map()[codes] * peak + mean
        np.testing.assert_array_equal(made.step.reshape(-1)[256 * i:256 * i + 256], wanted)


@pytest.mark.parametrize("name", ["nf4", "nvfp4", "mxfp4", "fp8-e5m2"])
def test_stored_parts_decode_alone(name: str) -> None:
    """What is written is all that decoding needs."""
    fmt: Format = format_named(name)
    w = np.random.default_rng(7).standard_normal((40, 100)).astype(np.float32)
    made = rounded(w, fmt, group=fmt.group or 100)
    parts = made.parts
    codes = fmt.unpack(fmt.pack(parts["packed"]), 100)
    step = steps(parts["scale"], parts.get("tensor_scale"), parts.get("offset"))
    np.testing.assert_array_equal(dequantized(fmt, made.group, codes, step, None), made.decoded())
