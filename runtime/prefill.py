"""The weights of the prefill graph, made from an artifact's packed weights when that graph is loaded.

A decode step multiplies one row and is fastest on 4-bit weights; a prompt multiplies hundreds and is fastest on int8. The
artifact stores the packed weights alone, and this is where the others come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ingot.errors import ArtifactError
from ingot.runtime.manifest import Manifest

FILE = "prefill.bin"
"""The file that the prefill graph reads its weights from."""

Span = tuple[int, int]
"""Where an array lies in the weights file: first byte and number of bytes."""


@dataclass(frozen=True, kw_only=True)
class Int8Weight:
    """An int8 weight [k, n] and its scales f32[n], where they go, and the codes, group scales and zero points they come from."""

    offset: int
    scale_offset: int
    packed: Span
    group_scale: Span
    zero: Span | None
    bits: int
    group: int
    k: int
    n: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Int8Weight:
        """The weight of a manifest entry; ArtifactError when it is not a whole one."""
        try:
            spans = {key: tuple(data[key]) if data[key] is not None else None for key in ("packed", "group_scale", "zero")}
            return cls(**{**data, **spans})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the manifest's prefill weights are damaged: {error}",
                                hint="compile the model again: ingot compile MODEL -o OUT") from error


_ROWS = 1024
"""Output channels decoded at a time, so that no whole weight is ever held in floats."""


@contextmanager
def prefill_weights(plan: Sequence[Mapping[str, Any]], weights: Path) -> Iterator[Path | None]:
    """A temporary folder with the prefill graph's weights file; None without a plan, when that graph reads the artifact's own.

    ONNX Runtime maps the file piece by piece while it lays weights out for its kernels, so that they are in memory once.
    ArtifactError when there is no room for it.
    """
    if not plan:
        yield None
        return
    try:
        with TemporaryDirectory(prefix="ingot-", ignore_cleanup_errors=True) as folder:
            with (Path(folder) / FILE).open("wb") as file:
                for entry in plan:
                    _write(entry, file, weights)
            yield Path(folder)
    except OSError as error:
        raise ArtifactError(f"the weights for long prompts cannot be made: {error.strerror}", where=gettempdir(),
                            hint="free some space there, or set TMPDIR to a folder that has room") from error


def _write(entry: Mapping[str, Any], file: BinaryIO, weights: Path) -> None:
    if "copy" in entry:
        pieces: dict[int, NDArray[Any]] = {entry["offset"]: _read(entry["copy"], weights, np.uint8)}
    else:
        recipe = Int8Weight.from_json(entry)
        weight, scale = int8_weight(recipe, weights)
        pieces = {recipe.offset: weight, recipe.scale_offset: scale}
    for offset, array in pieces.items():
        file.seek(offset)
        file.write(array.data)


def int8_weight(recipe: Int8Weight, weights: Path) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [n, k] with a scale per group as int8 [k, n] with a scale per output channel n, rounded to nearest."""
    made = np.empty((recipe.k, recipe.n), np.int8)
    scales = np.empty(recipe.n, np.float32)
    for first, rows in _decoded(recipe, weights):
        peak = np.abs(rows).max(axis=1)
        scale = np.where(peak == 0, 1, peak / 127).astype(np.float32)
        made[:, first : first + len(rows)] = np.rint(rows / scale[:, None]).astype(np.int8).T
        scales[first : first + len(rows)] = scale
    return made, scales


def cache_steps(manifest: Manifest, path: Path) -> dict[str, NDArray[np.float32]]:
    """The steps of int8 codes, by cache input, in a shape that broadcasts over [batch, heads, positions, features]."""
    steps: dict[str, NDArray[np.float32]] = {}
    for port in manifest.inputs:
        if port.name in manifest.prefill_steps:
            step = _read(manifest.prefill_steps[port.name], path / manifest.weights, np.float32)
            steps[port.name] = step.reshape(1, int(port.dims[1]), 1, int(port.dims[3])) if step.size > 1 else step
    return steps


def _decoded(recipe: Int8Weight, weights: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of weight rows f32[rows, k] and where they begin."""
    bits, n, k = recipe.bits, recipe.n, recipe.k
    blocks = -(-k // recipe.group)
    packed = _read(recipe.packed, weights, np.uint8).reshape(n, -1)
    group_scale = _read(recipe.group_scale, weights, np.float32).reshape(n, blocks)
    zero = _read(recipe.zero, weights, np.uint8).reshape(n, -1) if recipe.zero is not None else None
    for first in range(0, n, _ROWS):
        part = slice(first, first + _ROWS)
        offset: Any = 1 << (bits - 1)
        if zero is not None:
            offset = _unpacked(zero[part], bits)[:, :blocks, None].astype(np.float32)
        codes = _unpacked(packed[part], bits).reshape(-1, blocks, recipe.group)
        rows = (codes.astype(np.float32) - offset) * group_scale[part, :, None]
        yield first, rows.reshape(len(rows), -1)[:, :k]


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of 2, 4 or 8 bits, the first in the lowest bits of a byte, along the last axis."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def _read(stored: Span, weights: Path, dtype: Any) -> NDArray[Any]:
    data = np.memmap(weights, np.uint8, mode="r")[stored[0] : stored[0] + stored[1]]
    if len(data) != stored[1]:
        raise ArtifactError("the weights file is shorter than its index says", where=str(weights),
                            hint="copy the artifact again, or compile it again")
    return data.view(dtype)
