"""Rules that find activations written out in elementwise ops."""

from __future__ import annotations

import math

from ingot.ir.module import Builder
from ingot.ir.ops.pointwise import (
    Add,
    Clamp,
    Erf,
    Exp,
    Gelu,
    HardSwish,
    Log,
    Mul,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
)
from ingot.ir.pattern import Either, Match, P, Pattern, S, V
from ingot.ir.rewrite import Rule
from ingot.ir.value import Value

_X = V("x")
_CUBE = P(Mul, P(Mul, _X, _X), _X)
_SLOPE = math.sqrt(2.0 / math.pi)
_TANH_ARGUMENT = Either(
    # sqrt(2 / pi) * (x + 0.044715 x^3)
    P(Mul, P(Add, _X, P(Mul, _CUBE, S(equals=0.044715))), S(equals=_SLOPE)),
    # sqrt(2 / pi) * x * (1 + 0.044715 x^2)
    P(Mul, P(Mul, _X, S(equals=_SLOPE)),
      P(Add, Either(P(Mul, P(Mul, _X, S(equals=0.044715)), _X), P(Mul, P(Mul, _X, _X), S(equals=0.044715))), S(equals=1.0))))


def _half_gated(gate: Pattern) -> Pattern:
    """0.5 * x * (1 + gate), in any order of the products."""
    plus = P(Add, gate, S(equals=1.0))
    half = S(equals=0.5)
    return Either(P(Mul, P(Mul, _X, half), plus), P(Mul, P(Mul, _X, plus), half), P(Mul, _X, P(Mul, plus, half)))


class GeluByErf(Rule):
    """0.5 x (1 + erf(x / sqrt(2)))."""

    pattern = _half_gated(P(Erf, P(Mul, _X, S(equals=math.sqrt(0.5)))))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Gelu(m["x"]))


class GeluByTanh(Rule):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""

    pattern = _half_gated(P(Tanh, _TANH_ARGUMENT))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Gelu(m["x"], "tanh"))


class GeluBySigmoid(Rule):
    """x sigmoid(1.702 x)."""

    pattern = P(Mul, _X, P(Sigmoid, P(Mul, _X, S(equals=1.702))))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Gelu(m["x"], "sigmoid"))


class SiluBySigmoid(Rule):
    """x sigmoid(x)."""

    pattern = P(Mul, _X, P(Sigmoid, _X))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Silu(m["x"]))


class SoftplusByLog(Rule):
    """log(1 + exp(x))."""

    pattern = P(Log, P(Add, P(Exp, _X), S(equals=1.0)))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Softplus(m["x"]))


class HardSwishByClamp(Rule):
    """x clamp(x + 3, 0, 6) / 6."""

    pattern = P(Mul, P(Mul, _X, P(Clamp, P(Add, _X, S(equals=3.0)), least=0.0, greatest=6.0)), S(equals=1.0 / 6.0))

    def build(self, m: Match, b: Builder) -> Value:
        return b(HardSwish(m["x"]))


RULES: tuple[Rule, ...] = (GeluByErf(), GeluByTanh(), GeluBySigmoid(), SiluBySigmoid(), SoftplusByLog(), HardSwishByClamp())
