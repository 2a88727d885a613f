"""Weights made of packed codes by looking their bytes up: codes of another width for a kernel, floats, or int8 rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.runtime.spans import Span, read

Floats = NDArray[np.float32]

_BLOCK = 256
"""Consecutive steps that share a second-level scale, where they do not all share one."""
_ROWS = 1024
"""Output channels worked on at a time, so that no whole weight is held in floats where it is not to be."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Some bytes of each packed row, and what each of the 256 bytes stands for."""

    bytes: int
    table: Span


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What the `group`s of the k values of a row are multiplied by: scale[rows, groups], rows being n or 1.

    (scale f32, or values[scale] for scale u8) * tensor_scale + offset; tensor_scale is one number, or one for each 256.
    zero: bytes u8[rows, m] of zero points, which are taken from the values first; zero_table: what each byte stands for.
    """

    k: int
    group: int
    rows: int
    scale: Span
    values: Span | None = None
    tensor_scale: Span | None = None
    offset: Span | None = None
    zero: Span | None = None
    zero_table: Span | None = None

    @property
    def groups(self) -> int:
        """In a row, the last one maybe in part."""
        return -(-self.k // self.group)


@dataclass(frozen=True, kw_only=True)
class LookedUp:
    """A weight of n packed rows, and where it goes: u8[n, bytes], what the planes' bytes stand for, added up.

    With steps, values are multiplied: f32[k, n]; with scale_offset besides, rounded: i8[k, n], and its scales f32[n] go there.
    """

    offset: int
    n: int
    packed: Span
    planes: tuple[Plane, ...]
    steps: Steps | None = None
    scale_offset: int | None = None

    def __post_init__(self) -> None:
        """Raises TypeError where sizes and spans contradict each other."""
        if self.n < 1 or not self.planes or self.packed[1] != self.n * sum(plane.bytes for plane in self.planes):
            raise TypeError(f"{self.packed[1]} bytes are not {self.n} rows of {[plane.bytes for plane in self.planes]}")
        row, s = 256 * (1 if self.steps is None else 4), self.steps
        made = {plane.bytes * (plane.table[1] // row) for plane in self.planes}
        if any(plane.table[1] % row for plane in self.planes) or len(made) > 1:
            raise TypeError(f"tables of {[plane.table[1] for plane in self.planes]} bytes do not fit each other")
        if s is None:
            return
        if min(s.k, s.group) < 1 or made.pop() < s.k or s.rows not in (1, self.n):
            raise TypeError(f"{s.rows} rows of {s.k} values in groups of {s.group} do not fit the codes")
        count = s.rows * s.groups
        spare = 0 if s.zero_table is None else s.zero_table[1] // 1024 or 1
        sizes = {"scale": (s.scale, (count * (4 if s.values is None else 1),)), "values": (s.values, (1024,)),
                 "tensor_scale": (s.tensor_scale, (4, 4 * -(-count // _BLOCK))), "offset": (s.offset, (4,)),
                 "zero": (s.zero, (s.rows * -(-s.groups // spare) if spare else -1,)),
                 "zero_table": (s.zero_table, (1024 * spare,))}
        for name, (span, allowed) in sizes.items():
            if span is not None and span[1] not in allowed:
                raise TypeError(f"{name} has {span[1]} bytes for {count} steps")


def looked_up(recipe: LookedUp, weights: Path) -> dict[int, NDArray[Any]]:
    """The weight, and its scales where it has some, by where they go."""
    if recipe.steps is None:
        return {recipe.offset: np.concatenate([values for _, values in _values(recipe, weights, np.uint8)])}
    if recipe.scale_offset is not None:
        weight, scale = _int8(recipe, recipe.steps, weights)
        return {recipe.offset: weight, recipe.scale_offset: scale}
    made = np.empty((recipe.steps.k, recipe.n), np.float32)
    for part, values, step in _grouped(recipe, recipe.steps, weights):
        made[:, part] = (values * step[..., None]).reshape(len(values), -1)[:, : recipe.steps.k].T
    return {recipe.offset: made}


def _int8(recipe: LookedUp, steps: Steps, weights: Path) -> tuple[NDArray[np.int8], Floats]:
    """Values times steps as int8 [k, n] with a scale per output channel n, rounded to nearest.

    Whole rows of integers under one step are int8 already.
    """
    made, scales = np.empty((steps.k, recipe.n), np.int8), np.empty(recipe.n, np.float32)
    for part, values, step in _grouped(recipe, steps, weights):
        if steps.groups == 1 and values.min() >= -128 and values.max() <= 127 and (values == np.rint(values)).all():
            codes, scale = values[:, 0, : steps.k], step[:, 0]
        else:
            rows = (values * step[..., None]).reshape(len(values), -1)[:, : steps.k]
            peak = np.abs(rows).max(axis=1)
            scale = np.where(peak == 0, 1, peak / 127).astype(np.float32)
            codes = np.rint(rows / scale[:, None])
        made[:, part], scales[part] = codes.astype(np.int8).T, scale
    return made, scales


def _grouped(recipe: LookedUp, steps: Steps, weights: Path) -> Iterator[tuple[slice, Floats, Floats]]:
    """Some rows at a time: which, their values less zero points [rows, groups, group], their steps [rows, groups]."""
    step, zero = _steps(steps, weights), None
    if steps.zero is not None and steps.zero_table is not None:
        table = read(steps.zero_table, weights, np.float32).reshape(256, -1)
        zero = table[read(steps.zero, weights, np.uint8)].reshape(steps.rows, -1)[:, : steps.groups]
    width = steps.groups * steps.group
    for part, values in _values(recipe, weights, np.float32):
        cut = values[:, :width]
        full = cut if cut.shape[1] == width else np.pad(cut, ((0, 0), (0, width - cut.shape[1])))
        split = full.reshape(len(full), steps.groups, steps.group)
        own = part if steps.rows > 1 else slice(None)
        if zero is not None:
            split = split - zero[own, :, None]
        yield part, split, np.broadcast_to(step[own], split.shape[:2])


def _values(recipe: LookedUp, weights: Path, dtype: Any) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Some rows at a time: which, and what their bytes stand for, [rows, values]."""
    tables = [read(plane.table, weights, dtype).reshape(256, -1) for plane in recipe.planes]
    packed = read(recipe.packed, weights, np.uint8).reshape(recipe.n, -1)
    ends = np.cumsum([plane.bytes for plane in recipe.planes])
    for first in range(0, recipe.n, _ROWS):
        part = slice(first, min(first + _ROWS, recipe.n))
        planes = np.split(packed[part], ends[:-1], axis=1)
        found = [table[plane].reshape(len(plane), -1) for table, plane in zip(tables, planes, strict=True)]
        yield part, sum(found[1:], found[0])


def _steps(steps: Steps, weights: Path) -> Floats:
    """f32[rows, groups]."""
    if steps.values is None:
        scale = read(steps.scale, weights, np.float32)
    else:
        scale = read(steps.values, weights, np.float32)[read(steps.scale, weights, np.uint8)]
    if steps.tensor_scale is not None:
        factor = read(steps.tensor_scale, weights, np.float32)
        scale = scale * (np.repeat(factor, _BLOCK)[: scale.size] if factor.size > 1 else factor)
    if steps.offset is not None:
        scale = scale + read(steps.offset, weights, np.float32)
    return scale.reshape(steps.rows, -1)
