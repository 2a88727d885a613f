"""GPTQ: columns are rounded one after the other, and what each loses is made good by those that follow.

Minimises tr(E H E^T) for the error E = w - w' of a weight and the second moments H of its inputs (Frantar et al. 2022,
arXiv 2210.17323). With H = R R^T, R upper triangular, that is the sum over columns j of (E_j R_jj + sum_{i<j} E_i R_ij)^2, so
column j is best rounded from w_j + sum_{i<j} E_i R_ij / R_jj: the paper's updates by the inverse's Cholesky factor, in the
form of LDLQ (QuIP, arXiv 2307.13304, section 3.1), which needs no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.errors import IRError
from ingot.ir.formats import Coded, Format, Scales
from ingot.passes.quantization import rtn

_BLOCK = 32
"""Columns whose errors reach those behind them one by one; those of a whole block go on together."""


@dataclass(frozen=True)
class Feedback:
    """How errors of columns are made good, from the second moments of the inputs; made once for all weights behind one input.

    moments: f32[k, k], damped. group: consecutive columns that share a step. groups: the columns of each, the most important
    first. pull: f32[k, k] in the order of `groups`, strictly lower triangular: row j is R_ij / R_jj for the columns i before.
    left: f32[k], the part of each column's squared error, R_jj^2 / H_jj, that other columns cannot make good. dead: how many
    inputs are always zero.
    """

    moments: np.ndarray
    group: int
    groups: tuple[np.ndarray, ...]
    pull: np.ndarray
    left: np.ndarray
    dead: int

    @property
    def weight(self) -> np.ndarray:
        """What a squared error of each column counts for, f32[k]."""
        return np.diagonal(self.moments)


def feedback(moments: np.ndarray, *, group: int, damping: float = 0.01) -> Feedback:
    """The feedback for second moments f32[k, k] and groups of `group` consecutive columns (the last may be shorter).

    Columns go in descending order of their moment as far as groups stay together: groups by their mean, columns within
    theirs ("act order" that needs no index of groups). damping: a part of the mean moment, added to all. Inputs that are
    always zero count as much as the mean one, on their own. Raises IRError when a moment is not finite.
    """
    if not np.isfinite(moments).all():
        raise IRError("the second moments of its inputs are not finite", hint="activations overflow on the calibration text")
    k = len(moments)
    damped = moments.astype(np.float64)
    size = damped.diagonal().copy()
    dead = size <= 0
    mean = float(size[~dead].mean()) if not dead.all() else 1.0
    damped[np.diag_indices(k)] += damping * mean + np.where(dead, mean, 0)
    spans = [np.arange(start, min(start + group, k)) for start in range(0, k, group)]
    groups = tuple(span[np.argsort(-size[span], kind="stable")] for span in sorted(spans, key=lambda span: -size[span].mean()))
    order = np.concatenate(groups)
    # The upper triangular factor is the Cholesky factor of the matrix turned by half a turn, turned back.
    root = np.linalg.cholesky(damped[np.ix_(order[::-1], order[::-1])])[::-1, ::-1]
    pull = np.tril((root / root.diagonal()).T, -1)
    left = np.empty(k, np.float32)
    left[order] = np.square(root.diagonal()) / damped.diagonal()[order]
    return Feedback(damped.astype(np.float32), group, groups, pull.astype(np.float32), left, int(dead.sum()))


def gptq(w: np.ndarray, fmt: Format, how: Feedback, *, symmetric: bool = False, scales: Scales | None = None) -> Coded:
    """The codes of w f32[n, k].

    Unless `scales` are given, each group's steps are the best for the group as it is when its turn comes, by the squared
    error weighted with the moments. Raises IRError when an element of w is NaN or infinite.
    """
    n = len(w)
    target = np.ascontiguousarray(w.T, np.float32)
    top = fmt.tensor_scale(w)
    step = np.empty((n, len(how.groups)), np.float32) if scales is None else np.broadcast_to(scales.step, (n, len(how.groups)))
    zero = None if scales is None or scales.zero is None else np.broadcast_to(scales.zero, step.shape)
    values = np.empty_like(target)
    error = np.empty_like(target)
    start = 0
    for columns in how.groups:
        stop, index = start + len(columns), columns[0] // how.group
        wanted = target[columns] + how.pull[start:stop, :start] @ error[:start]
        if scales is None:
            step[:, [index]], offset = rtn.best_steps(np.ascontiguousarray(wanted.T), fmt, group=len(columns),
                                                      symmetric=symmetric, tensor_scale=top, weight=how.weight[columns])
            if offset is not None:
                zero = np.empty(step.shape, np.uint8) if zero is None else zero
                zero[:, [index]] = offset
        each = np.ascontiguousarray(step[:, index]), None if zero is None else np.ascontiguousarray(zero[:, index])
        for j, column in enumerate(columns, start):
            block = start + (j - start) // _BLOCK * _BLOCK
            if j == block > start:
                wanted[j - start:] += how.pull[j:stop, j - _BLOCK:j] @ error[j - _BLOCK:j]
            x = wanted[j - start] + how.pull[j, block:j] @ error[block:j]
            values[column] = fmt.nearest_values(x, *each)
            error[j] = target[column] - values[column]
        start = stop
    settled = fmt.settle(step, zero, top) if scales is None else scales
    if scales is None and not np.array_equal(settled.step, step):
        return gptq(w, fmt, how, symmetric=symmetric, scales=settled)
    return rtn.encoded(values.T, fmt, settled, group=how.group)
