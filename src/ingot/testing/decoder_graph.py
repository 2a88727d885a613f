"""Small causal decoders built in the IR as a frontend gives them, once their layers are recognised.

`DecoderBuilder` writes norms, ropes, activations and attention as one op each; `ingot.testing.written_out` overrides these
parts with the elementwise ops and products traced models come with.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Arange, Scalar
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Reshape, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Gelu, Mul, Relu, Silu, Tanh
from ingot.ir.ops.rope import Rope
from ingot.ir.types import TensorType, f32, i64
from ingot.ir.value import Const, Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight

if TYPE_CHECKING:
    from ingot.testing.decoders import Decoder

B, S = sym("B"), sym("S")
LARGEST_BATCH = 8
HEADS_FIRST = (0, 2, 1, 3)
"""[b, s, h, d] to [b, h, s, d] and back."""


class DecoderBuilder:
    """Builds the module of a Decoder: `build` walks through the layers, the other methods are their parts."""

    def __init__(self, plan: Decoder) -> None:
        self.plan = plan
        self.module = Module("decoder")
        self.module.set_dim("B", 1, LARGEST_BATCH)
        self.module.set_dim("S", 1, plan.context)
        self.module.meta.update(kind="decoder", context=plan.context, vocab=plan.vocab)
        self.b = Builder(self.module.add_func("forward"))
        self.ids = self.b.func.add_param("ids", TensorType(i64, (B, S)))
        self.pos: Value | None = None
        if not plan.counted:
            self.pos = self.b.func.add_param("pos", TensorType(i64, (B, S)))
        self.alibi: Value | None = None

    def build(self) -> Module:
        """The whole module, verified."""
        plan, b = self.plan, self.b
        table = self.weight("embed", plan.vocab, plan.width)
        x = b(Embedding(self.ids, table), "x")
        if plan.embed_scale is not None:
            x = self.scaled(x, plan.embed_scale)
        if plan.positions == "learned":
            x = b(Add(x, b(Embedding(self.positions(), self.weight("positions", plan.context, plan.width)))))
        if plan.positions == "alibi":
            self.alibi = self.slopes()
        for layer in range(plan.layers):
            x = self.block(layer, x)
        if plan.final_norm:
            x = self.norm(x, "norm")
        head = table if plan.tied else self.weight("head", plan.vocab, plan.width)
        logits = self.linear(x, head, self.bias("head", plan.vocab) if plan.head_bias else None)
        if plan.logit_cap is not None:
            logits = self.capped(logits, plan.logit_cap)
        logits.hint = "logits"
        b.func.set_returns([logits])
        b.func.drop_dead()
        verify(self.module)
        return self.module

    # --- layers -------------------------------------------------------------------------------------------------------

    def block(self, layer: int, x: Value) -> Value:
        plan, name = self.plan, f"l{layer}"
        if plan.parallel:
            inner = self.norm(x, f"{name}.norm1") if plan.place == "pre" else x
            x = self.b(Add(x, self.residual(self.attention(layer, inner))))
            return self.b(Add(x, self.residual(self.mlp(layer, inner)))) if plan.mlp != "none" else x
        x = self.around(x, f"{name}.norm1", lambda y: self.attention(layer, y))
        return self.around(x, f"{name}.norm2", lambda y: self.mlp(layer, y)) if plan.mlp != "none" else x

    def around(self, x: Value, name: str, part: Callable[[Value], Value]) -> Value:
        """A residual sum around part of a layer, with norms where the plan has them."""
        place = self.plan.place
        y = part(self.norm(x, name) if place in ("pre", "sandwich") else x)
        if place in ("post", "sandwich"):
            y = self.norm(y, f"{name}.post")
        total = self.b(Add(x, self.residual(y)))
        return self.norm(total, name) if place == "sum" else total

    def residual(self, y: Value) -> Value:
        return y if self.plan.residual_scale is None else self.scaled(y, self.plan.residual_scale)

    def attention(self, layer: int, x: Value) -> Value:
        plan, b, name = self.plan, self.b, f"l{layer}.attn"
        q, k, v = self.heads(name, x)
        if plan.turns(layer):
            q, k = self.rope(q), self.rope(k)
        y = self.attend(q, k, v, layer)
        y = b(Reshape(b(Transpose(y, HEADS_FIRST)), (B, S, plan.heads * plan.head_dim)))
        out = self.weight(f"{name}.o", plan.width, plan.heads * plan.head_dim)
        return self.linear(y, out, self.bias(f"{name}.o", plan.width) if plan.output_bias else None)

    def heads(self, name: str, x: Value) -> tuple[Value, Value, Value]:
        """Queries [b, h, s, d], keys and values [b, g, s, d]."""
        plan = self.plan
        counts = (plan.heads, plan.kv_heads, plan.kv_heads)
        q, k, v = (n * plan.head_dim for n in counts)
        if plan.qkv == "per_head":  # the features of one head: its query, key and value
            y = self.project(f"{name}.qkv", x, q + k + v, plan.attention_bias)
            y = self.b(Transpose(self.b(Reshape(y, (B, S, plan.heads, 3 * plan.head_dim))), HEADS_FIRST))
            parts = self.parts(y, (plan.head_dim,) * 3)
            return self.normed(name, parts[0], "q"), self.normed(name, parts[1], "k"), parts[2]
        if plan.qkv == "fused":
            parts = self.parts(self.project(f"{name}.qkv", x, q + k + v, plan.attention_bias), (q, k, v))
        else:
            parts = tuple(self.project(f"{name}.{part}", x, size, plan.attention_bias) for part, size in zip("qkv", (q, k, v)))
        found: list[Value] = []
        for part, count, y in zip("qkv", counts, parts):
            if plan.qk_norm == "whole" and part != "v":
                y = self.norm(y, f"{name}.{part}_norm")
            y = self.b(Reshape(y, (B, S, count, plan.head_dim)))
            y = y if part == "v" else self.normed(name, y, part)
            found.append(self.b(Transpose(y, HEADS_FIRST), part))
        return found[0], found[1], found[2]

    def normed(self, name: str, x: Value, part: str) -> Value:
        """Queries or keys, normalised per head where the plan says so."""
        return self.norm(x, f"{name}.{part}_norm") if self.plan.qk_norm == "head" else x

    def mlp(self, layer: int, x: Value) -> Value:
        plan, name = self.plan, f"l{layer}.mlp"
        if plan.mlp == "gated":
            if plan.mlp_fused:
                gate, up = self.parts(self.project(f"{name}.gate_up", x, 2 * plan.hidden, plan.mlp_bias), (plan.hidden,) * 2)
            else:
                gate, up = (self.project(f"{name}.{part}", x, plan.hidden, plan.mlp_bias) for part in ("gate", "up"))
            y = self.b(Mul(self.activation(gate), up))
        else:
            y = self.activation(self.project(f"{name}.up", x, plan.hidden, plan.mlp_bias))
        return self.project(f"{name}.down", y, plan.width, plan.mlp_bias)

    # --- parts of layers ----------------------------------------------------------------------------------------------

    def project(self, name: str, x: Value, out: int, biased: bool) -> Value:
        features = x.type.dims[-1]
        assert isinstance(features, int)
        return self.linear(x, self.weight(name, out, features), self.bias(name, out) if biased else None)

    def linear(self, x: Value, w: Const, bias: Const | None) -> Value:
        return self.b(Linear(x, w, bias))

    def norm(self, x: Value, name: str) -> Value:
        plan, size = self.plan, x.type.dims[-1]
        assert isinstance(size, int)
        w: Value | None = None
        if plan.norm_weight != "none":
            w = self.weight(name, size)
        if plan.norm_weight == "offset":
            assert w is not None
            w = self.b(Add(w, self.number(1.0)))
        return self.normalised(x, w, self.bias(name, size) if plan.norm == "layer" and plan.norm_bias else None)

    def normalised(self, x: Value, w: Value | None, bias: Value | None) -> Value:
        return self.b(LayerNorm(x, w, bias) if self.plan.norm == "layer" else RmsNorm(x, w))

    def rope(self, x: Value) -> Value:
        return self.b(Rope(x, self.positions(), self.frequencies(), interleaved=self.plan.interleaved))

    def attend(self, q: Value, k: Value, v: Value, layer: int) -> Value:
        plan = self.plan
        sinks = self.weight(f"l{layer}.attn.sinks", plan.heads) if plan.sinks else None
        return self.b(Attention(q, k, v, bias=self.alibi, sinks=sinks, scale=plan.scale, causal=True, window=plan.window(layer),
                                softcap=plan.softcap))

    def activation(self, x: Value) -> Value:
        match self.plan.activation:
            case "relu":
                return self.b(Relu(x))
            case "silu":
                return self.b(Silu(x))
            case "relu_squared":
                y = self.b(Relu(x))
                return self.b(Mul(y, y))
            case "gelu_tanh" | "gelu_sigmoid" as name:
                return self.b(Gelu(x, name.removeprefix("gelu_")))
            case _:
                return self.b(Gelu(x))

    def parts(self, x: Value, sizes: tuple[int, ...]) -> tuple[Value, ...]:
        """The last axis cut into parts."""
        return self.b.add(Split(x, sizes)).results

    def positions(self) -> Value:
        """Integers [b, s], or [1, s] counted."""
        return self.pos if self.pos is not None else self.b(Reshape(self.b(Arange(S)), (1, S)))

    def slopes(self) -> Value:
        """A bias [1, h, 1, s] that grows with the key's position, by head (Press et al. 2022, as Bloom has it)."""
        h = self.plan.heads
        slopes = self.const("slopes", np.float32(2.0) ** -np.arange(1, h + 1, dtype=np.float32).reshape(h, 1, 1))
        bias = self.b(Mul(self.b(Cast(self.b(Arange(S)), f32)), slopes))
        return self.b(Reshape(bias, (1, h, 1, S)))

    def capped(self, x: Value, cap: float) -> Value:
        return self.scaled(self.b(Tanh(self.scaled(x, 1 / cap))), cap)

    def scaled(self, x: Value, factor: float) -> Value:
        return self.b(Mul(x, self.number(factor)))

    def number(self, value: float) -> Value:
        return self.b(Scalar(value, f32))

    def frequencies(self) -> Const:
        """Radians per position of every pair of features that turns: 1, 1/8, 1/64, ..."""
        pairs = self.plan.rotary_dim // 2
        return self.const("inv_freq", np.float32(8.0) ** -np.arange(pairs, dtype=np.float32))

    # --- weights ------------------------------------------------------------------------------------------------------

    def weight(self, name: str, *shape: int) -> Const:
        """Odd multiples of 1/8 below 1: never zero, short in dumps. Those of norms are of one sign."""
        rng = np.random.default_rng([self.plan.seed, zlib.crc32(name.encode())])
        least = 0 if len(shape) == 1 else -4
        return self.const(name, ((2 * rng.integers(least, 4, size=shape) + 1) / 8).astype(np.float32))

    def bias(self, name: str, size: int) -> Const:
        return self.weight(f"{name}.bias", size)

    def const(self, name: str, array: np.ndarray) -> Const:
        return self.module.consts.get(name) or self.module.add_const(name, ArrayWeight(array))
