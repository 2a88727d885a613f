"""Whether two arrays are the same but for rounding, and where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXACT = 1e-9
"""What exact passes may change: this much of the greatest magnitude, for another order of summation in float64."""


@dataclass(frozen=True)
class Difference:
    """Where two arrays differ most: `before` and `after` are the numbers at `index` (None where types or shapes differ).

    reason: in words, with the greatest error and what is allowed.
    """

    reason: str
    index: tuple[int, ...] | None = None
    before: float = float("nan")
    after: float = float("nan")

    @property
    def numbers(self) -> str:
        """The numbers at the index; the reason where there are none."""
        return self.reason if self.index is None else f"at {list(self.index)} {self.before:.10g} became {self.after:.10g}"

    def __str__(self) -> str:
        return self.reason if self.index is None else f"{self.numbers} ({self.reason})"


def find_difference(a: np.ndarray, b: np.ndarray, *, rtol: float = EXACT) -> Difference | None:
    """How `b` differs from `a`; None when they agree within `rtol` of the greatest finite magnitude (at least 1)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    odd = ~np.where(finite, np.isfinite(y), (x == y) | (np.isnan(x) & np.isnan(y)))
    if odd.any():
        return _at(odd.argmax(), x, y, "infinities or NaN at other places")
    error = np.abs(np.where(finite, x, 0) - np.where(finite, y, 0))
    worst = float(np.max(error, initial=0.0))
    limit = rtol * max(1.0, float(np.max(np.abs(np.where(finite, x, 0)), initial=0.0)))
    return None if worst <= limit else _at(error.argmax(), x, y, f"off by {worst:.3g}, {limit:.3g} is allowed")


def difference(a: np.ndarray, b: np.ndarray, *, rtol: float) -> str:
    """`find_difference` in words; "" when there is none."""
    found = find_difference(a, b, rtol=rtol)
    return found.reason if found is not None else ""


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of `b - a` over that of `a`: 1 when zeros would be as near; infinite where `b` alone is not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.isfinite(y[finite]).all():
        return float("inf")
    off, size = float(np.linalg.norm(x[finite] - y[finite])), float(np.linalg.norm(x[finite]))
    return off / size if size else float("inf") if off else 0.0


def _at(flat: np.intp, x: np.ndarray, y: np.ndarray, reason: str) -> Difference:
    index = tuple(int(i) for i in np.unravel_index(flat, x.shape))
    return Difference(reason, index, float(x[index]), float(y[index]))
