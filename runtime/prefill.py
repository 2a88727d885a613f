"""The int8 weights of the prefill graph, made from an artifact's packed weights when that graph is loaded.

A decode step multiplies one row and is fastest on 4-bit weights; a prompt multiplies hundreds and is fastest on int8. The
artifact stores the packed weights alone, and this is where the others come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.errors import ArtifactError
from ingot.runtime.manifest import Manifest
from ingot.runtime.ort import value

Span = tuple[int, int]
"""Where an array lies in the weights file: first byte and number of bytes."""


@dataclass(frozen=True, kw_only=True)
class MadeAtLoad:
    """One int8 weight [k, n] and its scales [n], and the packed codes, group scales and zero points it is made from."""

    weight: str
    scale: str
    packed: Span
    group_scale: Span
    zero: Span | None
    bits: int
    group: int
    k: int
    n: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MadeAtLoad:
        """The recipe in a manifest entry; ArtifactError when it is not a whole one."""
        try:
            spans = {key: tuple(data[key]) if data[key] is not None else None for key in ("packed", "group_scale", "zero")}
            return cls(**{**data, **spans})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"the manifest's prefill weights are damaged: {error}",
                                hint="compile the model again: ingot compile MODEL -o OUT") from error


_ROWS = 1024
"""Output channels decoded at a time, so that no whole weight is ever held in floats."""


def prefill_initializers(manifest: Manifest, path: Path) -> dict[str, Any]:
    """OrtValues by initializer name: int8 weights [k, n] and their scales f32[n], as the prefill graph wants them."""
    out: dict[str, Any] = {}
    for recipe in map(MadeAtLoad.from_json, manifest.prefill_weights):
        weight, scale = int8_weight(recipe, path / manifest.weights)
        out[recipe.weight], out[recipe.scale] = value(weight), value(scale)
    return out


def int8_weight(recipe: MadeAtLoad, weights: Path) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [n, k] with a scale per group as int8 [k, n] with a scale per output channel n, rounded to nearest."""
    made = np.empty((recipe.k, recipe.n), np.int8)
    scales = np.empty(recipe.n, np.float32)
    for first, rows in _decoded(recipe, weights):
        peak = np.abs(rows).max(axis=1)
        scale = np.where(peak == 0, 1, peak / 127).astype(np.float32)
        made[:, first : first + len(rows)] = np.rint(rows / scale[:, None]).astype(np.int8).T
        scales[first : first + len(rows)] = scale
    return made, scales


def _decoded(recipe: MadeAtLoad, weights: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
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
