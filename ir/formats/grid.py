"""Formats whose values are not evenly spaced: small floats, and the quantiles of a normal distribution."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

from ingot.ir.formats.format import Format, divided, reach


@dataclass(frozen=True)
class Grid(Format):
    """Codes that stand for `value(code) * step`, symmetric enough that a group's greatest magnitude sets the step."""

    @cached_property
    def values(self) -> np.ndarray:
        """The finite values under step 1, ascending, f64."""
        table = self.table()
        return np.unique(table[np.isfinite(table)])

    @property
    def peak(self) -> float:
        return float(self.values[-1])

    def parameters(self, w: np.ndarray, *, symmetric: bool = False, tensor_scale: np.ndarray | None = None,
                   ratio: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        return self.scaling.cover(reach(w) * np.float32(ratio), self.peak, tensor_scale), None

    def encode(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        return self.nearest(np.clip(divided(w, step), -self.peak, self.peak))

    def bound(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        size = np.abs(step).astype(np.float64)
        x = np.clip(divided(w.astype(np.float64), step.astype(np.float64)), -self.peak, self.peak)
        above = np.clip(np.searchsorted(self.values, x), 1, len(self.values) - 1)
        half = (self.values[above] - self.values[above - 1]) / 2
        bound: np.ndarray = half * size + np.maximum(0, np.abs(w) - self.peak * size)
        return bound

    @abstractmethod
    def nearest(self, x: np.ndarray) -> np.ndarray:
        """The codes nearest to x, which lies within the grid."""


@dataclass(frozen=True)
class Minifloat(Grid):
    """Codes that are floats of a few bits, rounded to nearest even; minus zero keeps its sign."""

    def nearest_values(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        x = np.clip(divided(w, step), -self.peak, self.peak).astype(np.float32, copy=False)
        info = ml_dtypes.finfo(self.code.numpy)  # type: ignore[no-untyped-call]
        # A float32 without its sign and mantissa is the power of two at or below it.
        gap = np.maximum((x.view(np.int32) & 0x7F800000).view(np.float32), np.float32(2.0**info.minexp))
        gap *= np.float32(2.0**-info.nmant)
        x /= gap
        np.rint(x, out=x)
        x *= gap
        values: np.ndarray = x * step
        return values

    def nearest(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32, copy=False).astype(self.code.numpy)

    def decode(self, codes: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        values: np.ndarray = codes.astype(step.dtype) * step
        return values


NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
"""Quantiles of the normal distribution scaled to [-1, 1], with an exact zero (QLoRA, arXiv 2305.14314, appendix E)."""


@dataclass(frozen=True)
class Table(Grid):
    """Codes that index NORMAL_FLOAT. A value halfway between two takes the lower, as in bitsandbytes."""

    def nearest(self, x: np.ndarray) -> np.ndarray:
        table = np.array(NORMAL_FLOAT, np.float32)
        codes: np.ndarray = np.searchsorted((table[1:] + table[:-1]) / 2, x).astype(np.uint8).astype(self.code.numpy)
        return codes

    def decode(self, codes: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        values: np.ndarray = np.array(NORMAL_FLOAT, step.dtype)[codes.astype(np.uint8)] * step
        return values
