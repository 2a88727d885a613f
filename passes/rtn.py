"""Round to nearest: the plainest weight quantisation, and the starting point of the others."""

from __future__ import annotations

import numpy as np

from ingot.ir.formats import Format, grouped


def scales(w: np.ndarray, fmt: Format, *, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale [..., groups] (f32) and zero point [..., groups] (u8; None when symmetric) covering each group of w [..., k].

    Asymmetric groups cover [min(w, 0), max(w, 0)], so that zero stays exact. Symmetric ones give the element of greatest
    magnitude the outermost code, -2^(bits - 1), whatever its sign: the scale is negative where it is positive.
    """
    g = grouped(w.astype(np.float32, copy=False), group)
    if symmetric:
        outermost = np.take_along_axis(g, np.abs(g).argmax(-1)[..., None], -1)[..., 0]
        return outermost / -fmt.middle, None
    low, high = np.minimum(g.min(-1), 0), np.maximum(g.max(-1), 0)
    scale = (high - low) / (fmt.levels - 1)
    zero = np.rint(-low / np.where(scale == 0, 1, scale))
    return scale.astype(np.float32), np.clip(zero, 0, fmt.levels - 1).astype(np.uint8)


def codes(w: np.ndarray, fmt: Format, scale: np.ndarray, zero: np.ndarray | None, *, group: int) -> np.ndarray:
    """The nearest codes of w [..., k] (u8, same shape)."""
    g = grouped(w.astype(np.float32, copy=False), group)
    out = fmt.encode(g, scale[..., None], None if zero is None else zero[..., None])
    return out.reshape(*w.shape[:-1], -1)[..., :w.shape[-1]]
