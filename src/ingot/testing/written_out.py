"""Decoders with their layers written out in elementwise ops, reductions and products, as traced models have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingot.ir.ops.creation import Arange, Scalar
from ingot.ir.ops.layout import Concat, Expand, Reshape, Slice, Transpose
from ingot.ir.ops.matmul import MatMul
from ingot.ir.ops.pointwise import (
    Add,
    And,
    Cast,
    Cos,
    Div,
    Erf,
    Greater,
    LessEqual,
    Maximum,
    Mul,
    Neg,
    Not,
    Pow,
    Rsqrt,
    Sigmoid,
    Sin,
    Sqrt,
    Sub,
    Tanh,
    Where,
)
from ingot.ir.ops.reduce import Mean, Softmax
from ingot.ir.types import f32, i64
from ingot.ir.value import Const, Value
from ingot.testing.decoder_graph import B, DecoderBuilder, S

if TYPE_CHECKING:
    from ingot.testing.decoders import Decoder

LOWEST = -3.4028234663852886e38
"""The least float32, with which transformers hides keys."""


@dataclass(frozen=True)
class Spelling:
    """Which of several usual forms a written-out decoder takes."""

    scores: str = "op"
    """Attention is one op; products with heads as an axis; products with heads merged with the batch (op with sinks)."""
    mask: str = "add"
    """A mask is added to the scores, or hidden scores are replaced (where)."""
    rope: str = "rotate"
    """x * cos + rotate(x) * sin, or (of halves) both parts computed and joined."""
    powers: bool = False
    """x ** 2 for x * x."""
    quotients: bool = False
    """x / sqrt(y) for x * rsqrt(y), x / c for x * (1 / c)."""
    matrices: bool = False
    """Linears are products of flattened rows with [in, out] weights, plus a bias (GPT-2's Conv1D)."""


class WrittenOutBuilder(DecoderBuilder):
    """A DecoderBuilder whose norms, ropes, activations, linears, splits and attention are written out."""

    def __init__(self, plan: Decoder) -> None:
        super().__init__(plan)
        self.spelling = plan.spelling
        self.turn: tuple[Value, Value] | None = None
        self.seen: dict[int | None, Value] = {}

    def linear(self, x: Value, w: Const, bias: Const | None) -> Value:
        if not self.spelling.matrices or self.module.consts.get("embed") is w:
            return super().linear(x, w, bias)
        out, features = w.type.shape
        rows = self.b(Reshape(x, (B * S, features)))
        turned = self.const(f"{w.name}.in_out", w.weight.materialize().T.copy())
        y = self.b(MatMul(rows, turned))
        if bias is not None:
            y = self.b(Add(y, bias))
        return self.b(Reshape(y, (B, S, out)))

    def normalised(self, x: Value, w: Value | None, bias: Value | None) -> Value:
        b = self.b
        if self.plan.norm == "layer":
            x = b(Sub(x, b(Mean(x, (x.type.rank - 1,), True))))
        square = b(Pow(x, self.number(2.0))) if self.spelling.powers else b(Mul(x, x))
        eps = 1e-5 if self.plan.norm == "layer" else 1e-6
        mean = b(Add(b(Mean(square, (x.type.rank - 1,), True)), self.number(eps)))
        y = b(Div(x, b(Sqrt(mean)))) if self.spelling.quotients else b(Mul(x, b(Rsqrt(mean))))
        y = y if w is None else b(Mul(w, y))
        return y if bias is None else b(Add(y, bias))

    def activation(self, x: Value) -> Value:
        b = self.b
        match self.plan.activation:
            case "relu":
                return b(Maximum(x, self.number(0.0)))
            case "silu":
                return b(Mul(x, b(Sigmoid(x))))
            case "gelu_sigmoid":
                return b(Mul(b(Sigmoid(self.scaled(x, 1.702))), x))
            case "gelu":
                return self.half_gated(x, b(Erf(self.divided(x, math.sqrt(2.0)))))
            case "gelu_tanh":
                cube = b(Pow(x, self.number(3.0))) if self.spelling.powers else b(Mul(b(Mul(x, x)), x))
                inner = b(Add(x, self.scaled(cube, 0.044715)))
                return self.half_gated(x, b(Tanh(self.scaled(inner, math.sqrt(2.0 / math.pi)))))
            case _:
                y = b(Maximum(x, self.number(0.0)))
                return b(Pow(y, self.number(2.0))) if self.spelling.powers else b(Mul(y, y))

    def half_gated(self, x: Value, gate: Value) -> Value:
        return self.b(Mul(self.scaled(x, 0.5), self.b(Add(gate, self.number(1.0)))))

    def parts(self, x: Value, sizes: tuple[int, ...]) -> tuple[Value, ...]:
        last, at, found = x.type.rank - 1, 0, []
        for size in sizes:
            found.append(self.b(Slice(x, last, at, at + size)))
            at += size
        return tuple(found)

    def capped(self, x: Value, cap: float) -> Value:
        return self.scaled(self.b(Tanh(self.divided(x, cap))), cap)

    def divided(self, x: Value, by: float) -> Value:
        return self.b(Div(x, self.number(by))) if self.spelling.quotients else self.scaled(x, 1 / by)

    # --- rope -------------------------------------------------------------------------------------------------------------

    def rope(self, x: Value) -> Value:
        size, turning = self.plan.head_dim, self.plan.rotary_dim
        if turning == size:
            return self.turned(x)
        first, rest = self.parts(x, (turning, size - turning))
        return self.b(Concat((self.turned(first), rest), 3))

    def turned(self, x: Value) -> Value:
        b, half = self.b, self.plan.rotary_dim // 2
        cos, sin = self.cos_sin()
        if self.in_parts:
            low, high = self.parts(x, (half, half))
            return b(Concat((b(Sub(b(Mul(low, cos)), b(Mul(high, sin)))), b(Add(b(Mul(high, cos)), b(Mul(low, sin))))), 3))
        return b(Add(b(Mul(x, cos)), b(Mul(self.rotated(x), sin))))

    @property
    def in_parts(self) -> bool:
        return self.spelling.rope == "parts" and not self.plan.interleaved

    def rotated(self, x: Value) -> Value:
        """(-x2, x1) of the halves, or of neighbouring pairs."""
        b, lead, n = self.b, x.type.dims[:3], self.plan.rotary_dim
        if not self.plan.interleaved:
            low, high = self.parts(x, (n // 2, n // 2))
            return b(Concat((b(Neg(high)), low), 3))
        even, odd = b(Slice(x, 3, 0, n - 1, 2)), b(Slice(x, 3, 1, n, 2))
        pairs = [b(Reshape(y, (*lead, n // 2, 1))) for y in (b(Neg(odd)), even)]
        return b(Reshape(b(Concat(tuple(pairs), 4)), (*lead, n)))

    def cos_sin(self) -> tuple[Value, Value]:
        """Cosine and sine [b, 1, s, features], made once for all layers."""
        if self.turn is not None:
            return self.turn
        b, half = self.b, self.plan.rotary_dim // 2
        pos = self.positions()
        rows = pos.type.dims[0]
        angle = b(Mul(b(Cast(b(Reshape(pos, (rows, S, 1))), f32)), self.frequencies()))
        if self.plan.interleaved:
            twice = b(Expand(b(Reshape(angle, (rows, S, half, 1))), (rows, S, half, 2)))
            angle = b(Reshape(twice, (rows, S, 2 * half)))
        elif not self.in_parts:
            angle = b(Concat((angle, angle), 2))
        width = angle.type.dims[2]
        cos, sin = (b(Reshape(b(cls(angle)), (rows, 1, S, width))) for cls in (Cos, Sin))
        self.turn = cos, sin
        return self.turn

    # --- attention --------------------------------------------------------------------------------------------------------

    def attend(self, q: Value, k: Value, v: Value, layer: int) -> Value:
        plan, b = self.plan, self.b
        if self.spelling.scores == "op" or plan.sinks:
            return super().attend(q, k, v, layer)
        k, v = self.repeated(k), self.repeated(v)
        merged = self.spelling.scores == "merged"
        rows = B * plan.heads
        if merged:
            q, k, v = (b(Reshape(x, (rows, S, plan.head_dim))) for x in (q, k, v))
        scores = b(MatMul(q, b(Transpose(k, (0, 2, 1) if merged else (0, 1, 3, 2)))))
        scores = self.divided(scores, 1 / plan.scale)
        if plan.softcap is not None:
            scores = self.capped(scores, plan.softcap)
        if self.alibi is not None:
            alibi = b(Expand(self.alibi, (B, plan.heads, 1, S)))
            scores = b(Add(scores, b(Reshape(alibi, (rows, 1, S))) if merged else alibi))
        if merged:
            scores = b(Reshape(scores, (B, plan.heads, S, S)))
        weights = b(Softmax(self.masked(scores, plan.window(layer)), 3))
        if merged:
            weights = b(Reshape(weights, (rows, S, S)))
        y = b(MatMul(weights, v))
        return b(Reshape(y, (B, plan.heads, S, plan.head_dim))) if merged else y

    def repeated(self, x: Value) -> Value:
        """Key heads as often as there are query heads."""
        g, n, d = self.plan.kv_heads, self.plan.group, self.plan.head_dim
        if n == 1:
            return x
        wide = self.b(Expand(self.b(Reshape(x, (B, g, 1, S, d))), (B, g, n, S, d)))
        return self.b(Reshape(wide, (B, g * n, S, d)))

    def masked(self, scores: Value, window: int | None) -> Value:
        b, seen = self.b, self.visible(window)
        if self.spelling.mask == "where":
            return b(Where(b(Not(seen)), self.number(-math.inf), scores))
        return b(Add(scores, b(Where(b(Expand(seen, (B, 1, S, S))), self.number(0.0), self.number(LOWEST)))))

    def visible(self, window: int | None) -> Value:
        """Which keys a query sees, bool [1, 1, s, s], made once for every window."""
        if window in self.seen:
            return self.seen[window]
        b = self.b
        rows, columns = (b(Reshape(b(Arange(S)), shape)) for shape in ((1, 1, S, 1), (1, 1, 1, S)))
        seen = b(LessEqual(columns, rows))
        if window is not None:
            seen = b(And(seen, b(Greater(columns, b(Sub(rows, b(Scalar(window, i64))))))))
        self.seen[window] = seen
        return seen


