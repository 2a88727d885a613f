"""The features of query and key heads as blocks that may be mixed without attention noticing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.rope import Rope
from ingot.passes.grouping.site import Stream


@dataclass(frozen=True)
class Features:
    """What becomes of the features of a head between the linear and the scores.

    real, imag: the two features of every frequency, i64[f] each, which turn like a complex number. still: features that do not
    turn. normed: "" for none, "rms" where their root mean square is taken out, "layer" where their mean is, too.
    """

    real: np.ndarray
    imag: np.ndarray
    still: np.ndarray
    normed: str

    def turning(self, w: np.ndarray) -> np.ndarray:
        """The features that turn, f64[..., d, k], as complex numbers [f, ..., 1, k]: blocks of one."""
        return np.moveaxis(w[..., self.real, :] + 1j * w[..., self.imag, :], -2, 0)[..., None, :]

    def standing(self, w: np.ndarray) -> np.ndarray:
        """The features that do not turn, as one block, f64[1, ..., s, k]."""
        return w[None, ..., self.still, :]

    def put(self, out: np.ndarray, turning: np.ndarray, standing: np.ndarray) -> np.ndarray:
        """Features [..., d, k] from what `turning` and `standing` give."""
        pairs = np.moveaxis(turning[..., 0, :], 0, -2)
        out[..., self.real, :], out[..., self.imag, :] = np.real(pairs), np.imag(pairs)
        out[..., self.still, :] = standing[0]
        return out


def features_of(q: Stream, k: Stream) -> Features | None:
    """How the features of queries and keys may be mixed; None where the two are not treated alike, so that nothing may be."""
    size = k.rows.shape[1]
    ropes = [next((s for s in stream.steps if isinstance(s, Rope)), None) for stream in (q, k)]
    mine, other = ropes
    real = imag = np.empty(0, np.int64)
    if (mine is None) != (other is None):
        return None
    if mine is not None and other is not None:
        if mine.attrs != other.attrs or mine.inv_freq is not other.inv_freq:
            return None
        half = mine.rotary_dim // 2
        real, imag = (np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)) if mine.interleaved else \
                     (np.arange(half), np.arange(half, 2 * half))
    normed = [s for stream in (q, k) for s in stream.steps if isinstance(s, RmsNorm | LayerNorm)]
    how = "" if not normed else "layer" if any(isinstance(s, LayerNorm) for s in normed) else "rms"
    return Features(real, imag, np.setdiff1d(np.arange(size), np.concatenate([real, imag])), how)
