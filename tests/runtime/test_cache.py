"""Cache buffers: types, growth, what survives a move."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import ArtifactError
from ingot.runtime.cache import KVCache
from ingot.runtime.manifest import Port


def states(*ports: tuple[str, tuple[int | str, ...]]) -> list[tuple[Port, Port]]:
    return [(Port(name=f"c{i}", dtype=dtype, dims=dims, role="cache"),
             Port(name=f"c{i}_out", dtype=dtype, dims=dims, role="cache", aliases=f"c{i}"))
            for i, (dtype, dims) in enumerate(ports)]


MIXED = states(("i8", ("B", 2, "T", 4)), ("f32", ("B", 2, "T")), ("f16", ("B", 3, 5)), ("u8", ("B", "T", 2)))


def test_buffers_have_the_types_and_shapes_of_the_manifest() -> None:
    cache = KVCache(MIXED, context=1000)
    assert cache.reserve(3, 10)
    assert [(array.dtype.name, array.shape) for array in cache.arrays] == [
        ("int8", (3, 2, 64, 4)), ("float32", (3, 2, 64)), ("float16", (3, 3, 5)), ("uint8", (3, 64, 2))]
    assert all(not array.any() and array.ctypes.data % 64 == 0 for array in cache.arrays)
    assert cache.nbytes == sum(array.nbytes for array in cache.arrays)


def test_growing_keeps_the_first_positions_and_states_without_positions() -> None:
    cache = KVCache(MIXED, context=1000)
    cache.reserve(2, 64)
    for array in cache.arrays:
        array[:] = np.arange(array.size).reshape(array.shape) % 100
    before = [array.copy() for array in cache.arrays]
    assert not cache.reserve(2, 64, keep=40)
    assert cache.reserve(2, 65, keep=40)
    assert cache.capacity == 128
    for old, new, axis in zip(before, cache.arrays, (2, 2, None, 1), strict=True):
        kept = [slice(None)] * new.ndim
        if axis is not None:
            kept[axis] = slice(40)
        np.testing.assert_array_equal(new[tuple(kept)], old[tuple(kept)])


@pytest.mark.parametrize(("positions", "capacity"), [(0, 64), (1, 64), (64, 64), (65, 128), (129, 256), (257, 300), (300, 300)])
def test_capacity_is_a_power_of_two_up_to_the_context(positions: int, capacity: int) -> None:
    cache = KVCache(MIXED, context=300)
    cache.reserve(1, positions)
    assert cache.capacity == capacity


@pytest.mark.parametrize("dims", [(2, "T"), ("B", "X"), ("B", "T", "T"), ()])
def test_dims_the_session_cannot_size_are_refused(dims: tuple[int | str, ...]) -> None:
    with pytest.raises(ArtifactError, match="must be B first"):
        KVCache(states(("f32", dims)), context=10)


def test_a_type_without_arrays_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no arrays of type bf16"):
        KVCache(states(("bf16", ("B", "T"))), context=10).reserve(1, 1)


@pytest.mark.parametrize("shape", [(1,), (1, 2, 1, 4)])
def test_codes_become_floats_and_the_same_codes_again(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    step = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    cache = KVCache(MIXED[:2], context=1000, steps={"c0": step})
    cache.reserve(3, 10)
    codes = rng.integers(-128, 128, cache.arrays[0].shape, np.int8)
    cache.arrays[0][:] = codes
    plain = cache.arrays[1]
    assert not cache.become(wide=False, keep=10)
    assert cache.become(wide=True, keep=10)
    assert cache.arrays[1] is plain
    np.testing.assert_array_equal(cache.arrays[0][:, :, :10], codes[:, :, :10] * step)
    assert not cache.arrays[0][:, :, 10:].any()
    cache.reserve(3, 100, keep=10)
    assert cache.become(wide=False, keep=10)
    np.testing.assert_array_equal(cache.arrays[0][:, :, :10], codes[:, :, :10])


def test_floats_outside_the_codes_are_clipped() -> None:
    cache = KVCache(MIXED[:1], context=1000, steps={"c0": np.array([0.5], np.float32)})
    cache.reserve(1, 4)
    cache.become(wide=True, keep=0)
    cache.arrays[0][0, 0, 0] = [1e6, -1e6, 0.75, -0.24]
    cache.become(wide=False, keep=4)
    assert cache.arrays[0][0, 0, 0].tolist() == [127, -128, 2, 0]


def test_two_codes_in_a_byte_become_twice_as_many_floats() -> None:
    step = np.linspace(0.1, 0.8, 8, dtype=np.float32).reshape(1, 1, 1, 8)
    cache = KVCache(states(("u8", ("B", 1, "T", 4))), context=1000, steps={"c0": step})
    cache.reserve(2, 4)
    cache.arrays[0][1, 0, 3] = [0x98, 0x07, 0xF0, 0x88]
    before = cache.arrays[0].copy()
    cache.become(wide=True, keep=4)
    assert cache.arrays[0].shape == (2, 1, 64, 8)
    np.testing.assert_allclose(cache.arrays[0][1, 0, 3], step.reshape(8) * [0, 1, -1, -8, -8, 7, 0, 0], rtol=1e-6)
    cache.become(wide=False, keep=4)
    np.testing.assert_array_equal(cache.arrays[0][:, :, :4], before[:, :, :4])
