"""Which elements of a weight go, and what the others become: by magnitude, Wanda and SparseGPT."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ingot.passes.quantization.gptq import feedback

BLOCK = 16
"""Columns among which SparseGPT chooses at a time, where no pattern says so (section 3.3 of the paper, which takes 128: fewer
lose less, since what the ones before have lost is known when the next are chosen)."""


@dataclass(frozen=True)
class Pattern:
    """How many go: `gone` of every `span` consecutive elements of a row; without a span the part `ratio` of all."""

    ratio: float
    span: int | None = None

    @property
    def gone(self) -> int:
        assert self.span is not None
        return round(self.ratio * self.span)

    def kept(self, scores: np.ndarray) -> np.ndarray:
        """bool[n, k]: True for all but those of least score [n, k]; of every row, or of every span of one, as many go (those in
        front first, where scores are equal). The last span of a row may be shorter: it keeps as many as a whole one."""
        n, k = scores.shape
        span = k if self.span is None else self.span
        gone = math.floor(self.ratio * k + 0.5) if self.span is None else self.gone
        padded = np.pad(scores, ((0, 0), (0, -k % span)), constant_values=-np.inf).reshape(n, -1, span)
        rank = padded.argsort(-1, kind="stable").argsort(-1, kind="stable")
        return np.asarray((rank >= gone).reshape(n, -1)[:, :k])


def magnitude(w: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The least elements of w [n, k] go."""
    return np.asarray(w * pattern.kept(np.abs(w)))


def wanda(w: np.ndarray, second: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The elements of w f32[n, k] go whose products with the size of their input are least: |w_ij| (E x_j^2)^1/2 (Sun et al.
    2023, arXiv 2306.11695, section 3). second: moments of the inputs, f32[k, k]."""
    return np.asarray(w * pattern.kept(np.abs(w) * np.sqrt(np.maximum(second.diagonal(), 0))))


def sparsegpt(w: np.ndarray, second: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Columns of w f32[n, k] lose elements one after the other, and what that costs is made good by those that follow (Frantar
    and Alistarh 2023, arXiv 2301.00774, section 3), with the feedback of GPTQ.

    Of a pattern's span, or of BLOCK columns, those elements go that cost least: what the column would have to be, squared, times
    the part of its input's moment that no later column explains. second: moments of the inputs, f32[k, k].
    """
    span = pattern.span or BLOCK
    how = feedback(second, group=span)
    rest = (how.left * how.weight)[np.concatenate(how.groups)]
    target = np.ascontiguousarray(w.T, np.float32)
    values, error = np.empty_like(target), np.empty_like(target)
    start = 0
    for columns in how.groups:
        stop = start + len(columns)
        wanted = target[columns] + how.pull[start:stop, :start] @ error[:start]
        scores = np.square(wanted) * rest[start:stop, None]
        kept = _whole(scores, pattern.ratio) if pattern.span is None else _ordered(scores, columns, pattern)
        for j, column in enumerate(columns, start):
            x = wanted[j - start] + how.pull[j, start:j] @ error[start:j]
            values[column] = x * kept[j - start]
            error[j] = target[column] - values[column]
        start = stop
    return np.ascontiguousarray(values.T)


def _ordered(scores: np.ndarray, columns: np.ndarray, pattern: Pattern) -> np.ndarray:
    """`Pattern.kept` for one span [columns, n] whose columns are in another order."""
    place = np.argsort(columns)
    out = np.empty(scores.shape, bool)
    out[place] = pattern.kept(np.ascontiguousarray(scores[place].T)).T
    return out


def _whole(scores: np.ndarray, ratio: float) -> np.ndarray:
    """All but the part `ratio` of least score of a whole block."""
    gone = math.floor(ratio * scores.size + 0.5)
    kept = np.ones(scores.size, bool)
    kept[np.argpartition(scores.reshape(-1), gone - 1)[:gone] if gone else []] = False
    return kept.reshape(scores.shape)
