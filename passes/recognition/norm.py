"""Rules that find normalisations written out in elementwise ops and reductions.

Each step is a small rule: the bare norm first, then casts around it, a mean taken off before it, and its weight and bias.
"""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Mul, Rsqrt, Sub
from ingot.ir.ops.reduce import Mean, Variance
from ingot.ir.ops.rope import Rope
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, S, V, match
from ingot.ir.rewrite import Rule
from ingot.ir.value import Value
from ingot.passes.cleanup.simplify_casts import holds


class BareRmsNorm(Rule):
    """x * rsqrt(mean(x * x) + eps)."""

    pattern = P(Mul, V("x"), P(Rsqrt, P(Add, P(Mean, P(Mul, V("x"), V("x")), bind="mean", keep=True), S("eps"))))

    def check(self, m: Match) -> None:
        _over_last(m["mean"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(RmsNorm(m["x"], eps=m["eps"]))


class CentredRmsNorm(Rule):
    """The RMS norm of x - mean(x) is a layer norm."""

    pattern = P(RmsNorm, bind="norm")
    centred = P(Sub, V("x"), P(Mean, V("x"), bind="mean", keep=True))

    def check(self, m: Match) -> None:
        if m["norm"].x.op is None:
            raise Elsewhere("its input is no difference", m["norm"].x)
        try:
            m.extra["centred"] = inner = match(self.centred, m["norm"].x.op)
        except NoMatch as miss:
            near = (miss.matched or 0) > 1
            raise (NoMatch if near else Elsewhere)(f"its input is no x - mean(x): {miss.reason}", miss.value) from None
        _over_last(inner["mean"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(LayerNorm(m["centred"]["x"], m["norm"].w, eps=m["norm"].eps))


class LayerNormByVariance(Rule):
    """(x - mean(x)) * rsqrt(var(x) + eps)."""

    pattern = P(Mul, P(Sub, V("x"), P(Mean, V("x"), bind="mean", keep=True)),
                P(Rsqrt, P(Add, P(Variance, V("x"), bind="var", keep=True, correction=0.0), S("eps"))))

    def check(self, m: Match) -> None:
        _over_last(m["mean"])
        _over_last(m["var"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(LayerNorm(m["x"], eps=m["eps"]))


class NormWeight(Rule):
    """A norm without weight, times a vector over its last axis."""

    pattern = P(Mul, P((RmsNorm, LayerNorm), V("x"), bind="norm"), V("w"))

    def check(self, m: Match) -> None:
        norm, w = m["norm"], m["w"]
        if norm.result.n_uses > 1:
            raise NoMatch("the norm without weight is read elsewhere", norm.result)
        if w.type.dims != norm.result.type.dims[-1:]:
            raise NoMatch(f"the factor is {w.type}, not a vector over the last axis", w)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["norm"].clone(x=_cast(b, m["x"], m.op), w=m["w"]))


class NormBias(Rule):
    """A layer norm without bias, plus a vector over its last axis."""

    pattern = P(Add, P(LayerNorm, bind="norm"), V("bias"))

    def check(self, m: Match) -> None:
        norm, bias = m["norm"], m["bias"]
        if norm.bias is not None or bias.type.rank > 1:
            raise Elsewhere("it has a bias, or the summand is none", bias)
        if norm.result.n_uses > 1:
            raise NoMatch("the norm without bias is read elsewhere", norm.result)
        if bias.type.dims != norm.result.type.dims[-1:]:
            raise NoMatch(f"the summand is {bias.type}, not a vector over the last axis", bias)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["norm"].clone(x=_cast(b, m["norm"].x, m.op), bias=m["bias"]))


class NormOfNarrowWeight(Rule):
    """A weight widened for a norm: the norm computes in float32 by itself."""

    pattern = P((RmsNorm, LayerNorm), bind="norm")

    def check(self, m: Match) -> None:
        m.extra["narrow"] = narrow = {}
        for name in ("w", "bias"):
            value = m.op.__dict__.get(name)
            if value is not None and widened(value) is not value:
                narrow[name] = widened(value)
        if not narrow:
            raise Elsewhere("no weight is widened", m["norm"].x)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["norm"].clone(**m["narrow"]))


class CastsAround(Rule):
    """x widened, normalised or turned, and narrowed again: the op computes in float32 by itself."""

    pattern = P(Cast, P((RmsNorm, LayerNorm, Rope), bind="inner"))

    def check(self, m: Match) -> None:
        inner = m["inner"]
        up = inner.x.op
        if not isinstance(up, Cast) or up.x.type != m.op.result.type:
            raise Elsewhere(f"its operand is not cast from {m.op.result.type.dtype}", inner.x)
        if not holds(up.dtype, up.x.type.dtype):
            raise NoMatch("the operand is not widened", inner.x)
        if inner.result.n_uses > 1:
            raise NoMatch("the wide result is read elsewhere", inner.result)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["inner"].clone(x=m["inner"].x.op.x))


def widened(value: Value) -> Value:
    """The narrower float a value was cast from, without loss; the value itself when it was not."""
    op = value.op
    if isinstance(op, Cast) and op.x.type.dtype.is_float and holds(op.dtype, op.x.type.dtype):
        return op.x
    return value


def _over_last(op: Op) -> None:
    """Raises NoMatch unless a reduction is over the last axis alone."""
    x = op.operands[0]
    if [a % x.type.rank for a in op.attrs["axis"]] != [x.type.rank - 1]:
        raise NoMatch(f"{op.name} is over axes {list(op.attrs['axis'])}, not the last one alone", x)


def _cast(b: Builder, x: Value, like: Op) -> Value:
    """x in the element type of an op's result, which a wider weight may have given it."""
    dtype = like.result.type.dtype
    return x if x.type.dtype == dtype else b(Cast(x, dtype))


RULES: tuple[Rule, ...] = (BareRmsNorm(), CentredRmsNorm(), LayerNormByVariance(), NormWeight(), NormBias(),
                           NormOfNarrowWeight(), CastsAround())
