"""The key/value cache of a decoder: one buffer per state input, read and updated in place by the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.errors import ArtifactError
from ingot.runtime.manifest import Port
from ingot.runtime.nibbles import packed, unpacked
from ingot.runtime.ort import Array, value, zeros

SMALLEST = 64
"""The capacity the first allocation starts from (positions)."""

PACKED = "u8"
"""The element type of states that hold two 4-bit codes in a byte."""


def decoded_shape(port: Port, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the floats that codes of `shape` in a state stand for."""
    return (*shape[:-1], shape[-1] * 2) if port.dtype == PACKED else tuple(shape)


class KVCache:
    """State buffers for `batch` rows of `capacity` positions, each dims [B, ..., T, ...] as in the manifest.

    Capacity grows in powers of two up to `context`, keeping the contents. A row is a contiguous slice of every
    buffer, so the graph can run on one row alone without copying.
    """

    def __init__(self, states: Sequence[tuple[Port, Port]], *, context: int,
                 steps: Mapping[str, NDArray[np.float32]] | None = None) -> None:
        """states: pairs of a state input and the output that updates it. context: most positions, the last capacity.

        steps: of the codes of int8 and int4 states, by input name, shaped to broadcast over floats of them; those can become
        floats.
        """
        for port, _ in states:
            symbols = [dim for dim in port.dims if isinstance(dim, str)]
            if not port.dims or port.dims[0] != "B" or not set(symbols) <= {"B", "T"} or len(symbols) > 2:
                raise ArtifactError(f"the cache input {port.name!r} has dims {list(port.dims)}; "
                                    "they must be B first, at most one T, and sizes")
        self._states = tuple(states)
        self._context = context
        self._steps = dict(steps or {})
        self._values: list[Any] = []
        self.arrays: list[Array] = []
        """One buffer per state, in manifest order."""
        self.batch = 0
        self.capacity = 0
        self.wide = False
        """Whether states with steps hold floats now, instead of codes."""

    @property
    def nbytes(self) -> int:
        """Size of all buffers (bytes)."""
        return sum(array.nbytes for array in self.arrays)

    def reserve(self, batch: int, positions: int, *, keep: int = 0) -> bool:
        """Makes room for `batch` rows of `positions`; the first `keep` positions of every row survive a move.

        Returns whether the buffers moved, so that bindings to them must be made anew.
        """
        if batch == self.batch and positions <= self.capacity:
            return False
        old = self.arrays if batch == self.batch and keep else []
        capacity = max(SMALLEST, 1 << (positions - 1).bit_length()) if positions else SMALLEST
        self.batch, self.capacity = batch, min(capacity, self._context)
        self._set([zeros(self._shape(port), self._dtype(port)) for port, _ in self._states])
        for (port, _), before, after in zip(self._states, old, self.arrays, strict=False):
            kept = tuple(slice(keep) if dim == "T" else slice(None) for dim in port.dims)
            after[kept] = before[kept]
        return True

    def become(self, *, wide: bool, keep: int) -> bool:
        """Turns the codes of states with steps into floats (`wide`), or floats into codes: the first `keep` positions.

        Returns whether buffers moved. Floats that come from codes turn into the same codes again.
        """
        if wide == self.wide or not self._steps:
            return False
        self.wide = wide
        made: list[Array] = []
        for (port, _), before in zip(self._states, self.arrays, strict=False):
            step = self._steps.get(port.name)
            if step is None:
                made.append(before)
                continue
            after = zeros(self._shape(port), self._dtype(port))
            four_bits = port.dtype == PACKED
            for row in range(self.batch if keep else 0):
                old, new = before[row : row + 1, :, :keep], after[row : row + 1, :, :keep]
                if wide:
                    np.multiply(unpacked(old) if four_bits else old, step, out=new)
                else:
                    codes = np.rint(old / step)
                    new[:] = packed(np.clip(codes, -8, 7)) if four_bits else np.clip(codes, -128, 127)
            made.append(after)
        self._set(made)
        return True

    def select(self, rows: Sequence[int]) -> None:
        """Keeps `rows` (indices, repeats allowed) in that order; bindings must be made anew."""
        index = np.asarray(rows, np.int64)
        self.batch = len(index)
        self._set([np.ascontiguousarray(array[index]) for array in self.arrays])

    def bind(self, binding: Any, *, row: int | None = None) -> None:
        """Binds every buffer, or one row's slice of it, as input and as the output that updates it."""
        values = self._values if row is None else [value(array[row : row + 1]) for array in self.arrays]
        for (taken, given), buffer in zip(self._states, values, strict=True):
            binding.bind_ortvalue_input(taken.name, buffer)
            binding.bind_ortvalue_output(given.name, buffer)

    def _dtype(self, port: Port) -> str:
        return "f32" if self.wide and port.name in self._steps else port.dtype

    def _shape(self, port: Port) -> tuple[int, ...]:
        sizes = {"B": self.batch, "T": self.capacity}
        shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in port.dims)
        return decoded_shape(port, shape) if self._dtype(port) != port.dtype else shape

    def _set(self, arrays: list[Array]) -> None:
        self.arrays = arrays
        self._values = [value(array) for array in arrays]
