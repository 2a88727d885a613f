"""Round to nearest: the plainest weight quantisation, and the starting point of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ingot.ir.formats import Coded, Format, Scales, grouped

Made = TypeVar("Made")
_AT_ONCE = 1 << 17
"""Elements worked on at a time: what a core's cache holds, and no whole weight in floats several times over."""
_WORTH_THREADS = 8


def rounded(w: np.ndarray, fmt: Format, *, group: int, symmetric: bool = False, per_tensor: bool = False,
            search: bool = False) -> Coded:
    """Every element of w [n, k] at its nearest code, under the steps of `chosen_steps`."""
    scales = chosen_steps(w, fmt, group=group, symmetric=symmetric, per_tensor=per_tensor, search=search)
    return encoded(w, fmt, scales, group=group)


def encoded(w: np.ndarray, fmt: Format, scales: Scales, *, group: int) -> Coded:
    """Every element of w [n, k] at its nearest code under given steps."""

    def piece(rows: slice) -> np.ndarray:
        step, zero = (None if x is None else x[rows if len(x) > 1 else slice(None), :, None] for x in (scales.step, scales.zero))
        assert step is not None
        found = fmt.encode(grouped(w[rows].astype(np.float32, copy=False), group), step, zero)
        return found.reshape(len(found), -1)[:, :w.shape[1]]

    return Coded(fmt, group, np.concatenate(by_rows(w, piece)), scales)


def chosen_steps(w: np.ndarray, fmt: Format, *, group: int, symmetric: bool = False, per_tensor: bool = False,
                 search: bool = False) -> Scales:
    """Steps [n, ceil(k / group)] and zero points for w [n, k]; [1, 1] when `per_tensor`.

    They cover each group's greatest magnitude, or, with `search`, whatever ratio of it among `fmt.ratios` leaves the least
    sum of squared errors. Raises IRError when an element is NaN or infinite.
    """
    top = fmt.tensor_scale(w)
    if per_tensor:
        w, group = w.reshape(1, -1), w.size
    return fmt.settle(*best_steps(w, fmt, group=group, symmetric=symmetric, tensor_scale=top, search=search), top)


def best_steps(w: np.ndarray, fmt: Format, *, group: int, symmetric: bool = False, tensor_scale: np.ndarray | None = None,
               search: bool = True, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Steps [n, ceil(k / group)], not yet settled, and zero points (None without) for w [n, k]; as `chosen_steps` says.

    tensor_scale: that of the whole weight. weight: what the squared error of each place in a group counts for, f32[group] (all
    the same when None).
    """
    found = by_rows(w, lambda rows: _best_steps(grouped(w[rows].astype(np.float32, copy=False), group), fmt, symmetric=symmetric,
                                                tensor_scale=tensor_scale, search=search, weight=weight))
    zeros = [zero for _, zero in found if zero is not None]
    return np.concatenate([step for step, _ in found]), np.concatenate(zeros) if zeros else None


def _best_steps(g: np.ndarray, fmt: Format, *, symmetric: bool, tensor_scale: np.ndarray | None, search: bool,
                weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Step and zero point of each group of g f32[..., group]."""
    step, zero = fmt.parameters(g, symmetric=symmetric, tensor_scale=tensor_scale)
    if not search:
        return step, zero
    ends = np.stack([g.min(-1), g.max(-1)], -1)
    least = np.full(step.shape, np.inf, np.float32)
    for ratio in fmt.ratios:
        tried, offset = fmt.parameters(ends, symmetric=symmetric, tensor_scale=tensor_scale, ratio=ratio)
        lost = fmt.nearest_values(g, tried[..., None], None if offset is None else offset[..., None])
        lost -= g
        lost *= lost
        error = lost.sum(-1) if weight is None else lost @ weight
        better = error < least
        least, step = np.where(better, error, least), np.where(better, tried, step)
        zero = None if zero is None or offset is None else np.where(better, offset, zero)
    return step, zero


def by_rows(w: np.ndarray, work: Callable[[slice], Made]) -> list[Made]:
    """What `work` makes of rows of w [n, k], some at a time, in their order; on all cores where it is worth starting threads."""
    count = max(1, _AT_ONCE // w.shape[1])
    pieces = [slice(first, first + count) for first in range(0, len(w), count)]
    if len(pieces) < _WORTH_THREADS:
        return [work(piece) for piece in pieces]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, pieces))
