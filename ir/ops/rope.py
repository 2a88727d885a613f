"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.ir.op import Op
from ingot.ir.types import TensorType
from ingot.ir.value import Value


class Rope(Op):
    """Rotary position embedding (Su et al. 2021, section 3.4).

    x [b, h, s, d]; pos [b, s] (or [1, s]) integers; inv_freq [r / 2] in radians per position. The first r features
    turn by pos * inv_freq, the others pass. `interleaved` pairs (0, 1), (2, 3), ...; otherwise i pairs with i + r / 2.
    `scale` multiplies cosine and sine (YaRN's attention factor).
    """

    name = "rope"
    axes = "x[b h s d!], pos[b s], inv_freq[_] -> [b h s d!]"
    x: Value
    pos: Value
    inv_freq: Value
    interleaved: bool = False
    scale: float = 1.0

    @property
    def rotary_dim(self) -> int:
        """How many leading features turn."""
        return 2 * self.inv_freq.type.shape[0]

    def infer(self) -> TensorType:
        if self.x.type.rank != 4 or self.pos.type.rank != 2 or self.inv_freq.type.rank != 1:
            raise self.fail("x must be [b, h, s, d], pos [b, s], inv_freq [r / 2]")
        if self.pos.type.dims[1] != self.x.type.dims[2]:
            raise self.fail("pos and x differ in sequence length")
        last = self.x.type.dims[3]
        if not isinstance(last, int) or self.rotary_dim > last:
            raise self.fail("more frequencies than pairs of features")
        return self.x.type

    def reference(self, x: Any, pos: Any, inv_freq: Any) -> Any:
        angle = pos[:, None, :, None].astype(inv_freq.dtype) * inv_freq
        cos, sin = np.cos(angle) * self.scale, np.sin(angle) * self.scale
        half = inv_freq.shape[0]
        turned, rest = x[..., :2 * half], x[..., 2 * half:]
        if self.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
        else:
            a, b = turned[..., :half], turned[..., half:]
        parts = (a * cos - b * sin, b * cos + a * sin)
        turned = np.stack(parts, -1).reshape(turned.shape) if self.interleaved else np.concatenate(parts, -1)
        return np.concatenate([turned, rest], -1)
