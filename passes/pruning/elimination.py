"""Choosing input channels of a linear to take out one set after the other, the others making up for each as well as they can.

The optimal brain surgeon (Hassibi and Stork 1992) for sets of columns: taking out the columns B of W [o, k], with all others
refitted, costs tr(W_B (H^-1_BB)^-1 W_B^T) for the second moments H of the input (ZipLM, Kurtic et al. 2023, arXiv 2302.04089,
section 3.1; SlimGPT, Ling et al. 2024, arXiv 2412.18110, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DAMPING = 0.1
"""Part of the mean moment added to every channel's own."""


@dataclass(frozen=True)
class Reader:
    """A linear that reads the units: w f[o, k], moments f[k, k] of its input, units: the unit at each column, i64[k] or -1."""

    w: np.ndarray
    moments: np.ndarray
    units: np.ndarray


class Elimination:
    """The weights of readers while units leave one by one.

    readers: all that read the units. Memory: two f32 matrices [k, k] for each.
    """

    def __init__(self, readers: Sequence[Reader], size: int) -> None:
        self.units = [r.units for r in readers]
        self.w = [np.array(r.w, np.float32) for r in readers]
        self.inverse = [_inverse(r.moments) for r in readers]
        self.columns = [[np.flatnonzero(r.units == u) for u in range(size)] for r in readers]
        self.left = np.ones(size, bool)

    def costs(self) -> np.ndarray:
        """What it costs to take out each unit next, f64[size]; infinite for those that are gone."""
        total = np.zeros(len(self.left))
        for w, inverse, columns in zip(self.w, self.inverse, self.columns):
            if all(len(c) <= 1 for c in columns):
                at = np.array([c[0] if len(c) else -1 for c in columns])
                own = np.where(at < 0, 1, inverse[at, at])
                total += np.where(at < 0, 0, np.square(w[:, at]).sum(0) / np.maximum(own, 1e-30))
                continue
            for unit in np.flatnonzero(self.left):
                c = columns[unit]
                total[unit] += float(np.vdot(w[:, c].T, np.linalg.solve(inverse[np.ix_(c, c)], w[:, c].T)))
        return np.where(self.left, total, np.inf)

    def remove(self, units: np.ndarray) -> float:
        """Take out units together; returns what that cost."""
        lost = 0.0
        for i, (w, inverse, held) in enumerate(zip(self.w, self.inverse, self.units)):
            gone = np.flatnonzero(np.isin(held, units))
            change = np.linalg.solve(inverse[np.ix_(gone, gone)], np.concatenate([w[:, gone].T, inverse[gone]], 1))
            lost += float(np.vdot(w[:, gone].T, change[:, :len(w)]))
            w -= change[:, :len(w)].T @ inverse[gone]
            inverse -= inverse[:, gone] @ change[:, len(w):]
            stay = np.ones(len(held), bool)
            stay[gone] = False
            self._shrink(i, stay)
        self.left[units] = False
        return lost

    def _shrink(self, i: int, stay: np.ndarray) -> None:
        """Forget columns: what is left is what the moments of the others give."""
        self.w[i] = np.ascontiguousarray(self.w[i][:, stay])
        self.inverse[i] = np.ascontiguousarray(self.inverse[i][np.ix_(stay, stay)])
        self.units[i] = self.units[i][stay]
        place = np.cumsum(stay) - 1
        self.columns[i] = [place[c[stay[c]]] for c in self.columns[i]]


def _inverse(moments: np.ndarray) -> np.ndarray:
    own = moments.diagonal()
    damped = moments.astype(np.float64) + np.eye(len(moments)) * max(DAMPING * float(own.mean()), 1e-12)
    return np.asarray(np.linalg.inv(damped), np.float32)
