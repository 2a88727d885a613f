"""Random small causal decoders as a Hypothesis strategy, over the space of known architectures.

A `Decoder` says what a model is made of (head grouping, positions, norms, MLP, ...) and builds its module; the strategies
draw one. Every part is drawn apart and its simplest form comes first, so a failure shrinks to the parts it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from ingot.ir.module import Module
from ingot.testing.decoder_graph import DecoderBuilder
from ingot.testing.reporting import report
from ingot.testing.written_out import Spelling, WrittenOutBuilder


@dataclass(frozen=True)
class Decoder:
    """What a decoder is made of. The defaults are the least: one layer, one head, no norm, no MLP, no positions."""

    layers: int = 1
    width: int = 4
    head_dim: int = 4
    kv_heads: int = 1
    group: int = 1
    """Query heads per key head."""
    vocab: int = 8
    context: int = 16
    positions: str = "none"
    """none, learned, rope, alibi."""
    counted: bool = False
    """Positions come from an arange; there is no parameter `pos`."""
    rotary_dim: int = 4
    """Features that turn, even and at most head_dim."""
    interleaved: bool = False
    rope_every: int = 1
    """Of so many layers in a row, all but the last turn (1: all do)."""
    windows: tuple[int | None, ...] = ()
    """Of every layer; missing ones see everything before them."""
    norm: str = "rms"
    """rms, layer."""
    place: str = "none"
    """none; pre: x + f(n(x)); post: x + n(f(x)); sandwich: x + n(f(n(x))); sum: n(x + f(x))."""
    norm_weight: str = "plain"
    """none, plain, offset (1 + w)."""
    norm_bias: bool = False
    final_norm: bool = False
    qk_norm: str = "none"
    """none, head (over a head's features), whole (over all features)."""
    qkv: str = "separate"
    """separate, fused (one linear, split), per_head (one linear, split within every head)."""
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    mlp: str = "none"
    """none, plain, gated."""
    mlp_fused: bool = False
    activation: str = "relu"
    """relu, silu, gelu, gelu_tanh, gelu_sigmoid, relu_squared."""
    parallel: bool = False
    """Attention and MLP read the same input."""
    scale: float = 0.5
    softcap: float | None = None
    logit_cap: float | None = None
    sinks: bool = False
    embed_scale: float | None = None
    residual_scale: float | None = None
    tied: bool = True
    seed: int = 0
    """Of the weights."""
    spelling: Spelling = field(default_factory=Spelling)
    """How the module is written when `raw`."""

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def hidden(self) -> int:
        """Features inside the MLP."""
        return self.width + 2

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if layer < len(self.windows) else None

    def turns(self, layer: int) -> bool:
        """Whether a layer has rotary positions."""
        return self.positions == "rope" and (self.rope_every == 1 or (layer + 1) % self.rope_every != 0)

    def module(self, *, raw: bool = False) -> Module:
        """The module with dims B and S, parameters ids (and pos) [B, S] and the result logits [B, S, vocab].

        raw: norms, ropes, activations and attention written out as traced models have them.
        """
        return (WrittenOutBuilder if raw else DecoderBuilder)(self).build()


ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "relu_squared")
QK_NORMS = ("none", "head", "whole")


def _maybe(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from((None, *values))


@st.composite
def decoder_plans(draw: st.DrawFn) -> Decoder:
    """Decoders over the whole space: MHA, GQA and MQA, any positions, norms, MLP, caps, sinks, up to three layers."""
    flag = st.booleans()
    layers = draw(st.integers(1, 3))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from((4, 6)))
    mlp = draw(st.sampled_from(("none", "plain", "gated")))
    parallel = mlp != "none" and draw(flag)
    qkv = draw(st.sampled_from(("separate", "fused", "per_head") if group == 1 else ("separate", "fused")))
    positions = draw(st.sampled_from(("none", "learned", "rope", "alibi")))
    norm = draw(st.sampled_from(("rms", "layer")))
    rope: dict[str, Any] = {}
    if positions == "rope":
        rope = {"rotary_dim": draw(st.sampled_from((head_dim, *range(2, head_dim, 2)))), "interleaved": draw(flag),
                "rope_every": draw(st.integers(1, 2))}
    return Decoder(
        layers=layers, width=draw(st.sampled_from((4, 8))), head_dim=head_dim, kv_heads=kv_heads, group=group,
        positions=positions, counted=draw(flag), **rope, windows=tuple(draw(_maybe(1, 3)) for _ in range(layers)),
        norm=norm, place=draw(st.sampled_from(("none", "pre") if parallel else ("none", "pre", "post", "sandwich", "sum"))),
        norm_weight=draw(st.sampled_from(("plain", "none", "offset"))), norm_bias=norm == "layer" and draw(flag),
        final_norm=draw(flag), qkv=qkv, qk_norm=draw(st.sampled_from(("none", "head") if qkv == "per_head" else QK_NORMS)),
        attention_bias=draw(flag), output_bias=draw(flag), mlp_bias=mlp != "none" and draw(flag), head_bias=draw(flag),
        mlp=mlp, mlp_fused=mlp == "gated" and draw(flag),
        activation=draw(st.sampled_from(ACTIVATIONS)) if mlp != "none" else "relu", parallel=parallel,
        scale=draw(st.sampled_from((0.5, 0.25))), softcap=draw(_maybe(2.0)), logit_cap=draw(_maybe(4.0)), sinks=draw(flag),
        embed_scale=draw(_maybe(2.0)), residual_scale=draw(_maybe(0.5)), tied=not draw(flag), seed=draw(st.integers(0, 99)),
        spelling=draw(spellings()))


@st.composite
def spellings(draw: st.DrawFn) -> Spelling:
    """Ways to write the layers out."""
    flag = st.booleans()
    return Spelling(scores=draw(st.sampled_from(("op", "heads", "merged"))), mask=draw(st.sampled_from(("add", "where"))),
                    rope=draw(st.sampled_from(("rotate", "parts"))), powers=draw(flag), quotients=draw(flag), matrices=draw(flag))


@st.composite
def decoders(draw: st.DrawFn, *, raw: bool = False) -> Module:
    """Modules of random decoders, as a frontend gives them after recognition; before it, written out, when `raw`.

    Dims B in 1..8 and S in 1..context, meta kind, context and vocab, parameters ids and (unless positions are counted)
    pos i64[B, S], the result logits f32[B, S, vocab]. The text of a failing module is printed with the failure.
    """
    plan = draw(decoder_plans())
    report(lambda: plan.module(raw=raw))
    return plan.module(raw=raw)
