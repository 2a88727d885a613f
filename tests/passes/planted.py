"""Passes with mistakes in them, and a stack of decoder layers to run them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.creation import Arange, Scalar
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Expand, Flip, Reshape, Slice
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Div, Mul, Neg, Silu, Sub
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.rope import Rope
from ingot.ir.text import parse_module
from ingot.ir.types import i64
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import PASSES, Context, Pass
from ingot.passes.cache.insert_kv_cache import InsertKvCache
from ingot.passes.quantization.quantize import Quantize

LAYER = """
    %n{i} = rms_norm(%h{i}, w=@l{i}.norm) : f32[B, S, 16]
    %q{i} = linear(%n{i}, @l{i}.q) : f32[B, S, 16]
    %qh{i} = reshape(%q{i}) {{shape = [B, S, 4, 4]}} : f32[B, S, 4, 4]
    %qt{i} = transpose(%qh{i}) {{perm = [0, 2, 1, 3]}} : f32[B, 4, S, 4]
    %qr{i} = rope(%qt{i}, %pos, @freq) : f32[B, 4, S, 4]
    %k{i} = linear(%n{i}, @l{i}.k) : f32[B, S, 8]
    %kh{i} = reshape(%k{i}) {{shape = [B, S, 2, 4]}} : f32[B, S, 2, 4]
    %kt{i} = transpose(%kh{i}) {{perm = [0, 2, 1, 3]}} : f32[B, 2, S, 4]
    %kr{i} = rope(%kt{i}, %pos, @freq) : f32[B, 2, S, 4]
    %a{i} = attention(%qr{i}, %kr{i}, %kt{i}) {{scale = 0.5, causal = true, window = 3}} : f32[B, 4, S, 4]
    %at{i} = transpose(%a{i}) {{perm = [0, 2, 1, 3]}} : f32[B, S, 4, 4]
    %ar{i} = reshape(%at{i}) {{shape = [B, S, 16]}} : f32[B, S, 16]
    %m{i} = add(%h{i}, %ar{i}) : f32[B, S, 16]
    %g{i} = linear(%m{i}, @l{i}.up) : f32[B, S, 24]
    %s{i} = silu(%g{i}) : f32[B, S, 24]
    %two{i} = scalar() {{value = 1.5}} : f32[]
    %u{i} = mul(%s{i}, %two{i}) : f32[B, S, 24]
    %d{i} = linear(%u{i}, @l{i}.down) : f32[B, S, 16]
    %h{j} = sub(%m{i}, %d{i}) : f32[B, S, 16]  loc("model.py:{i}")"""
SHAPES = {"norm": (16,), "q": (16, 16), "k": (8, 16), "up": (24, 16), "down": (16, 24)}


def stack(layers: int = 2) -> Module:
    """A decoder of so many layers, 16 wide, its weights seeded."""
    consts = [f"const @l{i}.{name} : f32[{', '.join(map(str, shape))}] = memory()" for i in range(layers)
              for name, shape in SHAPES.items()]
    module = parse_module("\n".join([
        "module @stack {", "dim B in 1..8", "dim S in 1..64", "const @embed : f32[32, 16] = memory()",
        "const @table : f32[64, 16] = memory()", "const @freq : f32[2] = dense([1.0, 0.1])", *consts,
        "func @forward(%ids: i64[B, S], %pos: i64[B, S]) -> (f32[B, S, 32]) {",
        "%e = embedding(%ids, @embed) : f32[B, S, 16]", "%p = embedding(%pos, @table) : f32[B, S, 16]",
        "%h0 = add(%e, %p) : f32[B, S, 16]", *(LAYER.format(i=i, j=i + 1) for i in range(layers)),
        f"%logits = linear(%h{layers}, @embed) : f32[B, S, 32]", "return %logits", "}", "}"]))
    rng = np.random.default_rng(0)
    for const in module.consts.values():
        if const.name != "freq":
            numbers = rng.normal(size=const.type.shape) / np.sqrt(const.type.shape[-1]) + (const.name.endswith("norm"))
            const.weight = ArrayWeight(numbers.astype(np.float32))
    return module


def sites(func: Func, cls: type[Op], only: int | None) -> list[Op]:
    """The ops of a class, or one of them."""
    found = [op for op in func.ops if isinstance(op, cls)]
    return found if only is None else [found[only]]


@dataclass(frozen=True)
class Planted(Pass):
    """Rebuilds ops of a class, all of them or one, by `build`."""

    cls: ClassVar[type[Op]]
    only: int | None = None

    def run(self, module: Module, ctx: Context) -> int:
        found = sites(module.main, self.cls, self.only)
        for op in found:
            module.main.replace(op.results[0], self.build(op, Builder(module.main, before=op)))
        module.main.drop_dead()
        return len(found)

    def build(self, op: Op, b: Builder) -> Value:
        raise NotImplementedError


class SwappedSub(Planted):
    """x - y as y - x."""

    name = "planted-swapped-sub"
    cls = Sub

    def build(self, op: Sub, b: Builder) -> Value:  # type: ignore[override]
        return b(Sub(op.y, op.x))


class NegatedSub(Planted):
    """x - y as x + (-y), which is right."""

    name = "planted-negated-sub"
    cls = Sub

    def build(self, op: Sub, b: Builder) -> Value:  # type: ignore[override]
        return b(Add(op.x, b(Neg(op.y))))


class DroppedScale(Planted):
    """x * 1.5 as x."""

    name = "planted-dropped-scale"
    cls = Mul

    def build(self, op: Mul, b: Builder) -> Value:  # type: ignore[override]
        return op.x


class ForgottenSilu(Planted):
    """silu(x) as x, in the last layer."""

    name = "planted-forgotten-silu"
    cls = Silu
    only = -1

    def build(self, op: Silu, b: Builder) -> Value:  # type: ignore[override]
        return op.x


class WiderWindow(Planted):
    """A window one wider."""

    name = "planted-wider-window"
    cls = Attention

    def build(self, op: Attention, b: Builder) -> Value:  # type: ignore[override]
        return b(op.clone(window=(op.window or 0) + 1))


class FlippedSequence(Planted):
    """Wrong from two tokens on."""

    name = "planted-flipped-sequence"
    cls = Add

    def build(self, op: Add, b: Builder) -> Value:  # type: ignore[override]
        return b(Add(b(Flip(op.x, (1,))), op.y))


class FirstRowsPositions(Planted):
    """The positions of the first row for all: wrong where rows stand at different places."""

    name = "planted-first-rows-positions"
    cls = Embedding

    def build(self, op: Embedding, b: Builder) -> Value:  # type: ignore[override]
        return b(Embedding(b(Expand(b(Slice(op.ids, 0, 0, 1)), op.ids.type.dims)), op.w))


class FirstRowsAngles(Planted):
    """The angles of the first row for all: right, since scores know only how far apart positions are."""

    name = "planted-first-rows-angles"
    cls = Rope

    def build(self, op: Rope, b: Builder) -> Value:  # type: ignore[override]
        return b(Rope(op.x, b(Expand(b(Slice(op.pos, 0, 0, 1)), op.pos.type.dims)), op.inv_freq))


@dataclass(frozen=True)
class FoldedScale(Pass):
    """A factor of two out of a norm's weight and into the linears that read it; with `half` into none of them."""

    name = "planted-folded-scale"
    half: bool = False
    only: int | None = None

    def run(self, module: Module, ctx: Context) -> int:
        found = sites(module.main, RmsNorm, self.only)
        for op in found:
            assert isinstance(op, RmsNorm)
            _scale(module, op, 2.0)
            for user in op.result.users if not self.half else ():
                _scale(module, user, 0.5)
        module.main.drop_dead()
        return len(found)


def _scale(module: Module, op: Op, factor: float) -> None:
    assert isinstance(op, RmsNorm | Linear)
    assert isinstance(op.w, Const)
    numbers = op.w.weight.materialize() * np.float32(factor)
    module.main.set_operand(op, "w", module.add_const(f"{op.w.name}.scaled", ArrayWeight(numbers)))


@dataclass(frozen=True)
class MovedScale(Pass):
    """x * 1.5 moved behind the linear that reads it: right, though the value between changes its meaning."""

    name = "planted-moved-scale"

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        found = [op for op in func.ops if isinstance(op, Mul)]
        for op in found:
            linear = op.result.users[0]
            after = func.insert(Scalar(1.5, op.x.type.dtype), after=linear)
            scaled = func.insert(Mul(linear.results[0], after.result), after=after)
            func.replace(linear.results[0], scaled.results[0])
            func.set_operand(scaled, "x", linear.results[0])
            func.replace(op.result, op.x)
        func.drop_dead()
        return len(found)


@dataclass(frozen=True)
class BrokenCache(Pass):
    """insert-kv-cache, and then a mistake in it."""

    name = "planted-broken-cache"
    contract: ClassVar[Literal["exact", "lossy", "cache"]] = "cache"
    mistake: str = "seen"
    dtype: str = "float"

    def requires(self) -> tuple[str, ...]:
        return ("calibration",)

    def run(self, module: Module, ctx: Context) -> int:
        done = InsertKvCache(dtype=self.dtype).run(module, ctx)
        func = module.main
        MISTAKES[self.mistake](func)
        func.drop_dead()
        return done


def _sees_one_more(func: Func) -> None:
    """Attention that sees the position after the newest, too."""
    for op in [op for op in func.ops if isinstance(op, Attention)]:
        b = Builder(func, before=op)
        assert op.pos is not None
        func.set_operand(op, "pos", b(Add(op.pos, b(Scalar(1, i64)))))


def _writes_from_zero(func: Func) -> None:
    """Keys written to where they stand in the call, not in the sequence: right for a prefill."""
    for op in [op for op in func.ops if isinstance(op, CacheWrite)]:
        b = Builder(func, before=op)
        batch, count = op.pos.type.dims
        func.set_operand(op, "pos", b(Expand(b(Reshape(b(Arange(count)), (1, count))), (batch, count))))


def _writes_first_row(func: Func) -> None:
    """Keys written to where the first row stands: right while all rows are as long."""
    for op in [op for op in func.ops if isinstance(op, CacheWrite)]:
        b = Builder(func, before=op)
        func.set_operand(op, "pos", b(Expand(b(Slice(op.pos, 0, 0, 1)), op.pos.type.dims)))


def _forgets_step(func: Func) -> None:
    """Codes read without their step."""
    for op in [op for op in func.ops if isinstance(op, Mul) and isinstance(op.x.op, Cast)]:
        func.replace(op.result, op.x)


def _halves_step(func: Func) -> None:
    """Codes made with half the step they are read with."""
    for op in [op for op in func.ops if isinstance(op, Div)]:
        b = Builder(func, before=op)
        func.set_operand(op, "y", b(Mul(op.y, b(Scalar(0.5, op.y.type.dtype)))))


MISTAKES: dict[str, Callable[[Func], None]] = {
    "seen": _sees_one_more, "zero": _writes_from_zero, "first-row": _writes_first_row, "step": _forgets_step,
    "half-step": _halves_step}


@dataclass(frozen=True)
class BrokenQuantize(Pass):
    """quantize, and then the zero points of one weight off by one."""

    name = "planted-broken-quantize"
    contract: ClassVar[Literal["exact", "lossy", "cache"]] = "lossy"
    only: int | None = None

    def run(self, module: Module, ctx: Context) -> int:
        done = Quantize(format="int4", group=16, symmetric=False).run(module, ctx)
        for op in sites(module.main, Dequantize, self.only):
            assert isinstance(op, Dequantize)
            assert isinstance(op.zero, Const)
            moved = op.zero.weight.materialize().astype(np.uint8) + 1
            weight = ArrayWeight(moved.astype(op.zero.type.dtype.numpy), dtype=op.zero.type.dtype)
            module.main.set_operand(op, "zero", module.add_const("moved", weight))
        module.main.drop_dead()
        return done


@dataclass(frozen=True)
class NotFinite(Pass):
    """Divides the output by zero."""

    name = "planted-not-finite"
    contract: ClassVar[Literal["exact", "lossy", "cache"]] = "lossy"

    def run(self, module: Module, ctx: Context) -> int:
        b = Builder(module.main)
        value = module.main.returns[0]
        module.main.set_returns([b(Div(value, b(Scalar(0.0, value.type.dtype))))])
        return 1


NAMED: dict[str, type[Pass]] = {name: PASSES.pop(name) for name in list(PASSES) if name.startswith("planted-")}
"""These passes by name. Pipelines do not find them, unless a test puts them back."""
