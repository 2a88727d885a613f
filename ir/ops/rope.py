"""Rotary position embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.ir.axes import AxisMap, parse_axes
from ingot.ir.op import Op
from ingot.ir.types import TensorType
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.ir.module import Builder


class Rope(Op):
    """Rotary position embedding (Su et al. 2021, section 3.4).

    x [b, h, s, d]; pos [b, s] (or [1, s]) integers; inv_freq [r / 2] in radians per position. The first r features
    turn by pos * inv_freq, the others pass. `interleaved` pairs (0, 1), (2, 3), ...; otherwise i pairs with i + r / 2.
    `scale` multiplies cosine and sine (YaRN's attention factor).
    """

    name = "rope"
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
        self.need_floats(self.x, self.inv_freq)
        if self.pos.type.dims[1] != self.x.type.dims[2] or self.pos.type.dims[0] not in (1, self.x.type.dims[0]):
            raise self.fail("pos and x differ in batch or sequence length")
        if not self.pos.type.dtype.is_integer:
            raise self.fail("pos must be integers")
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

    def axis_map(self) -> AxisMap:
        if self.rotary_dim != self.x.type.dims[3]:
            return parse_axes(self, "x[b h s d!], pos[b s], inv_freq[_] -> [b h s d!]")
        pairs = "(pair two!)" if self.interleaved else "(two! pair)"
        return parse_axes(self, f"x[b h s {pairs}], pos[b s], inv_freq[pair] -> [b h s {pairs}]")

    def decompose(self, b: Builder) -> Value:
        from ingot.ir.ops.creation import Scalar
        from ingot.ir.ops.layout import Concat, Reshape, Slice
        from ingot.ir.ops.pointwise import Add, Cast, Cos, Mul, Sin, Sub

        (rows, steps), half, last = self.pos.type.dims, self.rotary_dim // 2, self.x.type.dims[3]
        work = self.inv_freq.type.dtype
        at = b(Cast(b(Reshape(self.pos, (rows, 1, steps, 1))), work))
        angle = b(Mul(at, self.inv_freq))
        factor = b(Scalar(self.scale, work))
        cos, sin = b(Mul(b(Cos(angle)), factor)), b(Mul(b(Sin(angle)), factor))
        turned = b(Slice(self.x, 3, 0, 2 * half))
        lead = self.x.type.dims[:3]
        if self.interleaved:
            pairs = b(Reshape(turned, (*lead, half, 2)))
            first, second = (b(Reshape(b(Slice(pairs, 4, i, i + 1)), (*lead, half))) for i in (0, 1))
        else:
            first, second = b(Slice(turned, 3, 0, half)), b(Slice(turned, 3, half, 2 * half))
        parts = [b(Sub(b(Mul(first, cos)), b(Mul(second, sin)))), b(Add(b(Mul(second, cos)), b(Mul(first, sin))))]
        if self.interleaved:
            parts = [b(Reshape(p, (*lead, half, 1))) for p in parts]
            y = b(Reshape(b(Concat(tuple(parts), axis=4)), (*lead, 2 * half)))
        else:
            y = b(Concat(tuple(parts)))
        if y.type.dtype != self.x.type.dtype:
            y = b(Cast(y, self.x.type.dtype))
        return y if 2 * half == last else b(Concat((y, b(Slice(self.x, 3, 2 * half, last)))))
