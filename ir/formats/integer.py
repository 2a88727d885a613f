"""Integer formats: evenly spaced codes with or without a zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.ir.formats.format import Format, divided, finite


@dataclass(frozen=True)
class Integer(Format):
    """Unsigned codes that stand for `(code - zero) * step`; `zero` is 2^(bits - 1) unless a zero point is stored."""

    has_zero_points = True

    @property
    def middle(self) -> int:
        """The code that stands for zero when no zero point is stored."""
        return 1 << (self.bits - 1)

    @property
    def peak(self) -> float:
        return float(self.middle)

    def parameters(self, w: np.ndarray, *, symmetric: bool = False, tensor_scale: np.ndarray | None = None,
                   ratio: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        """Asymmetric groups cover [min(w, 0), max(w, 0)], so that zero stays exact. Symmetric ones give the element of
        greatest magnitude the outermost code, -2^(bits - 1), whatever its sign: the step is negative where it is positive.
        """
        part = np.float32(ratio)
        if symmetric:
            outermost = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]
            return finite(outermost.astype(np.float32) * part / np.float32(-self.middle)), None
        low, high = (finite(x.astype(np.float32)) * part for x in (np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)))
        gaps = np.float32(self.levels - 1)
        # Divided first: the difference of the two greatest floats is infinite.
        step = high / gaps - low / gaps
        zero = np.rint(divided(-low, step))
        return step, np.clip(zero, 0, self.levels - 1).astype(np.uint8)

    def encode(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        exact = np.rint(divided(w, step)) + (self.middle if zero is None else zero)
        codes: np.ndarray = np.clip(exact, 0, self.levels - 1).astype(np.uint8).astype(self.code.numpy, copy=False)
        return codes

    def decode(self, codes: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        offset = self.middle if zero is None else zero.astype(step.dtype)
        values: np.ndarray = (codes.astype(step.dtype) - offset) * step
        return values

    def nearest_values(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        offset = step.dtype.type(self.middle) if zero is None else zero.astype(step.dtype)
        codes = divided(w, step)
        np.rint(codes, out=codes)
        np.minimum(np.maximum(codes, -offset, out=codes), self.levels - 1 - offset, out=codes)
        codes *= step
        return codes

    def bound(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        size, offset = step.astype(np.float64), np.float64(self.middle) if zero is None else zero.astype(np.float64)
        ends = np.stack(np.broadcast_arrays(-offset * size, (self.levels - 1 - offset) * size))
        beyond = np.maximum(0, np.maximum(ends.min(0) - w, w - ends.max(0)))
        bound: np.ndarray = np.abs(size) / 2 + beyond
        return bound
