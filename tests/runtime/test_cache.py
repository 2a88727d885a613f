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
