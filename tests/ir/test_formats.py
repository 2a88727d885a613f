"""Quantised formats: codes pack, groups are scaled, decoding is as near as the format promises, what is stored is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.formats import FORMATS, Coded, Format, Integer, format_named, grouped, pack_bits, unpack_bits

KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1.0, shape),
    "heavy tailed": lambda rng, shape: np.clip(rng.standard_cauchy(shape), -1e6, 1e6),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    "wide": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 9, (shape[0], 1)),
}

formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)


@st.composite
def cases(draw: st.DrawFn, fmt: Format) -> tuple[np.ndarray, int, bool]:
    """Weights f32[n, k] with k of any size, a group size of the format, and whether without zero points."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 150)))
    kind, seed = draw(st.sampled_from(sorted(KINDS))), draw(st.integers(0, 2**32 - 1))
    scale = 10.0 ** draw(st.integers(-20, 20))
    w = (KINDS[kind](np.random.default_rng(seed), shape) * scale).astype(np.float32)
    return w, draw(st.sampled_from(fmt.groups)) or shape[1], draw(st.booleans()) if fmt.has_zero_points else True


def coded(fmt: Format, w: np.ndarray, group: int, *, symmetric: bool) -> Coded:
    top, g = fmt.tensor_scale(w), grouped(w, group)
    scales = fmt.settle(*fmt.parameters(g, symmetric=symmetric, tensor_scale=top), top)
    codes = fmt.encode(g, scales.step[..., None], None if scales.zero is None else scales.zero[..., None])
    return Coded(fmt, group, codes.reshape(len(w), -1)[:, :w.shape[1]], scales)


@formats
def test_nearest_values_are_those_of_the_nearest_codes(fmt: Format) -> None:
    @settings(max_examples=25)
    @given(cases(fmt), st.sampled_from([1.0, 0.7]))
    def check(case: tuple[np.ndarray, int, bool], ratio: float) -> None:
        w, group, symmetric = case
        g = grouped(w, group)
        step, zero = fmt.parameters(g, symmetric=symmetric, tensor_scale=fmt.tensor_scale(w), ratio=ratio)
        each = step[..., None], None if zero is None else zero[..., None]
        np.testing.assert_array_equal(fmt.nearest_values(g, *each), fmt.decode(fmt.encode(g, *each), *each))

    check()


@formats
def test_an_element_is_as_near_as_the_format_promises(fmt: Format) -> None:
    @settings(max_examples=40)
    @given(cases(fmt))
    def check(case: tuple[np.ndarray, int, bool]) -> None:
        w, group, symmetric = case
        made = coded(fmt, w, group, symmetric=symmetric)
        decoded, scales = made.decoded(), made.scales
        g, step = grouped(w, group), scales.step[..., None]
        zero = None if scales.zero is None else scales.zero[..., None]
        error = np.abs(grouped(decoded, group).astype(np.float64) - g)
        # The arithmetic is in f32: a code may be off where an element lies on the border of two.
        slack = 4e-7 * np.abs(g).max(-1, keepdims=True) + 2e-45
        assert (error <= fmt.bound(g, step, zero) + slack).all()
        if zero is not None:
            limit = np.abs(step)
        else:
            limit = fmt.worst * np.abs(g).max(-1, keepdims=True)
        if fmt.name == "nf4":  # the steps themselves are rounded, by up to 1 / 128 of the widest in the block
            limit = limit + np.abs(scales.step - grouped(np.abs(w), group).max(-1))[..., None]
        if fmt.name == "nvfp4":  # the smallest step under the tensor's scale
            limit = limit + 2.0 ** -10 * made.parts["tensor_scale"]
        assert (error <= limit * 1.001 + slack).all()

    check()


@formats
def test_steps_are_stored_exactly(fmt: Format) -> None:
    @settings(max_examples=20)
    @given(cases(fmt))
    def check(case: tuple[np.ndarray, int, bool]) -> None:
        w, group, symmetric = case
        top = fmt.tensor_scale(w)
        step, zero = fmt.parameters(grouped(w, group), symmetric=symmetric, tensor_scale=top)
        scales = fmt.settle(step, zero, top)
        if fmt.name == "nf4":
            block = np.abs(step - step.mean()).max()
            np.testing.assert_allclose(scales.step, step, atol=0.0072 * block + 1e-45, rtol=1e-6)
        else:
            np.testing.assert_array_equal(scales.step, step)
        types = fmt.types((w.shape[0], w.shape[1]), group, symmetric=symmetric)
        parts = coded(fmt, w, group, symmetric=symmetric).parts
        assert list(parts) == list(types)
        for name, type_ in types.items():
            assert (parts[name].dtype, parts[name].shape) == (type_.dtype.numpy, type_.shape)

    check()


@formats
def test_every_code_is_a_fixed_point(fmt: Format) -> None:
    bits = np.arange(fmt.levels, dtype=np.uint8)
    codes = (bits.view(fmt.code.numpy) if fmt.code.is_float else bits.astype(fmt.code.numpy))[np.isfinite(fmt.table())]
    for step in (np.float32(0.5), np.float32(-3.0)):
        if step < 0 and not isinstance(fmt, Integer):
            continue
        again = fmt.encode(fmt.decode(codes, step), step)
        np.testing.assert_array_equal(again.view(np.uint8), codes.view(np.uint8))


@formats
def test_codes_pack_and_unpack(fmt: Format) -> None:
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 8, 21):
        raw = rng.integers(0, fmt.levels, (2, 3, k), dtype=np.uint8)
        codes = raw.view(fmt.code.numpy) if fmt.code.is_float else raw.astype(fmt.code.numpy)
        packed = fmt.pack(codes)
        assert packed.shape == (2, 3, -(-k * fmt.bits // 8))
        np.testing.assert_array_equal(fmt.unpack(packed, k).view(np.uint8), codes.view(np.uint8))
        assert fmt.unpack(packed, k).dtype == fmt.code.numpy


@formats
def test_columns_can_be_coded_one_at_a_time(fmt: Format) -> None:
    """As GPTQ does: the step of a group is fixed at its start, then its columns follow."""
    w = np.random.default_rng(1).standard_normal((5, 70)).astype(np.float32)
    group = fmt.group or w.shape[1]
    top = fmt.tensor_scale(w)
    codes, steps, zeros = np.empty(w.shape, fmt.code.numpy), [], []
    for start in range(0, w.shape[1], group):
        step, zero = fmt.parameters(w[:, start:start + group], symmetric=False, tensor_scale=top)
        for j in range(start, min(start + group, w.shape[1])):
            codes[:, j] = fmt.encode(w[:, j], step, zero)
            back = fmt.decode(codes[:, j], step, zero)
            assert back.dtype == np.float32
            assert (np.abs(back - w[:, j]) <= fmt.bound(w[:, j], step, zero) + 1e-6).all()
        steps.append(step)
        zeros += [] if zero is None else [zero]
    scales = fmt.settle(np.stack(steps, 1), np.stack(zeros, 1) if zeros else None, top)
    whole = coded(fmt, w, group, symmetric=False)
    for name, array in Coded(fmt, group, codes, scales).parts.items():
        if (fmt.name, name) == ("nf4", "packed"):
            continue  # its steps are rounded when they settle, after these codes were chosen
        assert array.tobytes() == whole.parts[name].tobytes(), name


@formats
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_zeros_is_zeros(fmt: Format, symmetric: bool) -> None:
    w = np.zeros((2, 64), np.float32)
    w[1, :] = -0.0
    assert not coded(fmt, w, fmt.group or 64, symmetric=symmetric).decoded().any()
    w[0, 63] = 1.0  # and stays so beside other groups
    assert not coded(fmt, w, fmt.group or 64, symmetric=symmetric).decoded()[1].any()


@formats
def test_the_smallest_and_the_greatest_floats(fmt: Format) -> None:
    least, most = np.float32(1e-45), np.finfo(np.float32).max / 4  # asymmetric codes may reach a step beyond
    for w in (np.full((1, 32), least), np.array([[least, -least] * 16]), np.array([[1e-39, -3e-40] * 16]),
              np.full((1, 32), most), np.array([[most, -most] * 16])):
        w = w.astype(np.float32)
        for symmetric in (True, False):
            with np.errstate(all="raise", under="ignore"):
                made = coded(fmt, w, fmt.group or 32, symmetric=symmetric)
            back = made.decoded().astype(np.float64)
            assert np.isfinite(made.scales.step).all()
            assert (np.abs(back - w) <= float(np.abs(w).max()) * 1.001).all()


@formats
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(fmt: Format, bad: float) -> None:
    w = np.ones((2, 64), np.float32)
    w[1, 40] = bad
    for symmetric in (True, False):
        with pytest.raises(IRError, match="NaN or infinite"), np.errstate(all="ignore"):
            coded(fmt, w, fmt.group or 64, symmetric=symmetric)


@formats
def test_a_smaller_ratio_gives_finer_steps_that_clip(fmt: Format) -> None:
    w = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    top = fmt.tensor_scale(w)
    step, half = (fmt.parameters(w, symmetric=True, tensor_scale=top, ratio=r)[0] for r in (1.0, 0.5))
    np.testing.assert_allclose(half, step / 2, rtol=0.08)  # e4m3 has three bits of mantissa
    assert np.abs(fmt.decode(fmt.encode(w, half[:, None]), half[:, None])).max() < np.abs(w).max()


@pytest.mark.parametrize("symmetric", [True, False])
@formats
def test_bits_per_weight_are_what_is_stored(fmt: Format, symmetric: bool) -> None:
    shape = (2048, 1024)
    for group in fmt.groups:
        types = fmt.types(shape, group or shape[1], symmetric=symmetric)
        bits = sum(t.dtype.bits * int(np.prod(t.shape)) for t in types.values())
        assert bits / np.prod(shape) == pytest.approx(fmt.weight_bits(group or shape[1], symmetric=symmetric), rel=1e-4)


def test_the_bits_that_the_table_states() -> None:
    stated = {"int8": 9, "int4": 5, "int3": 4, "int2": 3, "nf4": 4.127, "fp4": 5, "mxfp4": 4.25, "nvfp4": 4.5}
    for name, bits in stated.items():
        fmt = format_named(name)
        assert fmt.weight_bits(fmt.group) == pytest.approx(bits, abs=5e-4)
    assert format_named("int4").weight_bits(32, symmetric=False) == 5.125
    assert format_named("fp8-e4m3").weight_bits(4096) == 8 + 32 / 4096


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers_use_their_outermost_code(bits: int) -> None:
    """Whatever the sign of the greatest element, it is exact; so is zero under any zero point."""
    fmt = format_named(f"int{bits}")
    for w in ([0.25, 1.0, -0.5, 0.0], [-1.0, 0.3, 0.2, 0.0]):
        made = coded(fmt, np.array([w], np.float32), 16, symmetric=True)
        assert np.abs(made.decoded()).max() == 1.0
        assert made.codes.min() == 0
        assert made.codes[0, 3] == 1 << (bits - 1)
        assert made.decoded()[0, 3] == 0
    made = coded(fmt, np.array([[0.3, 0.7, 1.0, 0.0]], np.float32), 16, symmetric=False)
    assert made.decoded()[0, 3] == 0
    assert made.decoded()[0, 2] == pytest.approx(1.0)


def test_a_step_of_zero_gives_zeros() -> None:
    fmt = format_named("int4")
    codes = fmt.encode(np.zeros((1, 4)), np.zeros((1, 1)), None)
    assert not fmt.decode(codes, np.zeros((1, 1)), None).any()


def test_unknown_formats_are_listed() -> None:
    with pytest.raises(IRError, match="unknown format int5") as caught:
        format_named("int5")
    assert "int4" in str(caught.value)


@given(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packed_bits_unpack(bits: int, n: int, seed: int) -> None:
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
