"""Elementwise torch ops."""

from __future__ import annotations

import math

from ingot.frontend.aten.registry import RULES, Graph, Rule, aten, common_dtype
from ingot.ir.dims import Dim
from ingot.ir.op import Op
from ingot.ir.ops import pointwise as p
from ingot.ir.types import bool_, f32
from ingot.ir.value import Value

Operand = Value | float | Dim


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _scaled(g: Graph, x: Operand, alpha: float) -> Operand:
    if alpha == 1:
        return x
    return g(p.Mul(*g.common(x if isinstance(x, Value) else g.scalar(x, common_dtype([x])), alpha)))


@aten("add.Tensor", "add.Scalar")
def add(g: Graph, x: Operand, y: Operand, alpha: float = 1) -> Value:
    x, y = g.common(x, _scaled(g, y, alpha))
    return g(p.Or(x, y) if x.type.dtype == bool_ else p.Add(x, y))


@aten("sub.Tensor", "sub.Scalar")
def sub(g: Graph, x: Operand, y: Operand, alpha: float = 1) -> Value:
    return g(p.Sub(*g.common(x, _scaled(g, y, alpha))))


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(g: Graph, x: Operand, y: Operand, alpha: float = 1) -> Value:
    return sub(g, y, x, alpha)


@aten("mul.Tensor", "mul.Scalar")
def mul(g: Graph, x: Operand, y: Operand) -> Value:
    x, y = g.common(x, y)
    return g(p.And(x, y) if x.type.dtype == bool_ else p.Mul(x, y))


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor", "div.Tensor_mode", "div.Scalar_mode")
def div(g: Graph, x: Operand, y: Operand, rounding_mode: str | None = None) -> Value:
    a, b = g.common(x, y)
    if rounding_mode == "floor":
        return g(p.FloorDiv(a, b))
    if rounding_mode == "trunc":
        return _towards_zero(g, a, b)
    a, b = (v if v.type.dtype.is_float else g.cast(v, f32) for v in (a, b))
    return g(p.Div(a, b))


def _towards_zero(g: Graph, a: Value, b: Value) -> Value:
    """The quotient without its fraction."""
    if a.type.dtype.is_float:
        return _trunc(g, g(p.Div(a, b)))
    size = g(p.FloorDiv(g(p.Abs(a)), g(p.Abs(b))))
    return g(p.Mul(g(p.Mul(g(p.Sign(a)), g(p.Sign(b)))), size))


@aten("floor_divide.default", "floor_divide.Scalar")
def floor_divide(g: Graph, x: Operand, y: Operand) -> Value:
    return g(p.FloorDiv(*g.common(x, y)))


@aten("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def remainder(g: Graph, x: Operand, y: Operand) -> Value:
    return g(p.Mod(*g.common(x, y)))


@aten("fmod.Tensor", "fmod.Scalar")
def fmod(g: Graph, x: Operand, y: Operand) -> Value:
    """The remainder with the sign of the dividend."""
    a, b = g.common(x, y)
    return g(p.Sub(a, g(p.Mul(_towards_zero(g, a, b), b))))


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(g: Graph, x: Operand, y: Operand) -> Value:
    return g(p.Pow(*g.common(x, y)))


@aten("square.default")
def square(g: Graph, x: Value) -> Value:
    return g(p.Mul(x, x))


@aten("maximum.default", "clamp_min.Tensor")
def maximum(g: Graph, x: Operand, y: Operand) -> Value:
    return g(p.Maximum(*g.common(x, y)))


@aten("minimum.default", "clamp_max.Tensor")
def minimum(g: Graph, x: Operand, y: Operand) -> Value:
    return g(p.Minimum(*g.common(x, y)))


@aten("addcmul.default")
def addcmul(g: Graph, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return add(g, x, _scaled(g, mul(g, y, z), value))


@aten("addcdiv.default")
def addcdiv(g: Graph, x: Value, y: Value, z: Value, value: float = 1) -> Value:
    return add(g, x, _scaled(g, div(g, y, z), value))


@aten("lerp.Scalar", "lerp.Tensor")
def lerp(g: Graph, x: Value, y: Value, weight: Operand) -> Value:
    return add(g, x, mul(g, sub(g, y, x), weight))


def _trunc(g: Graph, x: Value) -> Value:
    return g(p.Mul(g(p.Sign(x)), g(p.Floor(g(p.Abs(x))))))


@aten("trunc.default", "fix.default")
def trunc(g: Graph, x: Value) -> Value:
    return _trunc(g, x)


@aten("clamp.default", "clamp.Tensor", "hardtanh.default")
def clamp(g: Graph, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    if g.name == "aten.hardtanh.default":
        min, max = -1.0 if min is None else min, 1.0 if max is None else max
    if isinstance(min, int | float | None) and isinstance(max, int | float | None):
        limits = (None if limit is None else float(limit) for limit in (min, max))
        return g(p.Clamp(g.cast(x, g.out.dtype), *limits))
    if min is not None:
        x = maximum(g, x, min)
    return x if max is None else minimum(g, x, max)


@aten("clamp_min.default")
def clamp_min(g: Graph, x: Value, min: float) -> Value:
    return clamp(g, x, min, None)


@aten("clamp_max.default")
def clamp_max(g: Graph, x: Value, max: float) -> Value:
    return clamp(g, x, None, max)


@aten("relu6.default")
def relu6(g: Graph, x: Value) -> Value:
    return clamp(g, x, 0.0, 6.0)


# --- functions of one tensor --------------------------------------------------------------------------------------


def _unary(cls: type[p.Unary]) -> Rule:
    def rule(g: Graph, x: Value) -> Value:
        floats = g.out.dtype.is_float and not x.type.dtype.is_float
        return g(cls(g.cast(x, g.out.dtype) if floats else x))
    return rule


_UNARY: dict[str, type[p.Unary]] = {
    "neg": p.Neg, "abs": p.Abs, "sign": p.Sign, "exp": p.Exp, "log": p.Log, "sqrt": p.Sqrt, "rsqrt": p.Rsqrt,
    "reciprocal": p.Reciprocal, "sin": p.Sin, "cos": p.Cos, "erf": p.Erf, "floor": p.Floor, "ceil": p.Ceil, "round": p.Round,
    "sigmoid": p.Sigmoid, "tanh": p.Tanh, "relu": p.Relu, "silu": p.Silu, "hardsigmoid": p.HardSigmoid,
    "hardswish": p.HardSwish, "isnan": p.IsNan,
}
RULES.update({f"aten.{name}.default": _unary(cls) for name, cls in _UNARY.items()})


@aten("gelu.default")
def gelu(g: Graph, x: Value, approximate: str = "none") -> Value:
    return g(p.Gelu(x, approximate))


@aten("leaky_relu.default")
def leaky_relu(g: Graph, x: Value, negative_slope: float = 0.01) -> Value:
    return g(p.LeakyRelu(x, float(negative_slope)))


@aten("elu.default")
def elu(g: Graph, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        raise g.unsupported("an input scale")
    y = g(p.Elu(x, float(alpha)))
    return y if scale == 1 else mul(g, y, float(scale))


@aten("softplus.default")
def softplus(g: Graph, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if beta == 1:
        return g(p.Softplus(x))
    return div(g, g(p.Softplus(mul(g, x, float(beta)))), float(beta))


@aten("mish.default")
def mish(g: Graph, x: Value) -> Value:
    return g(p.Mul(x, g(p.Tanh(g(p.Softplus(x))))))


@aten("log_sigmoid.default")
def log_sigmoid(g: Graph, x: Value) -> Value:
    return g(p.Neg(g(p.Softplus(g(p.Neg(x))))))


@aten("log1p.default")
def log1p(g: Graph, x: Value) -> Value:
    return g(p.Log(add(g, x, 1.0)))


@aten("expm1.default")
def expm1(g: Graph, x: Value) -> Value:
    return sub(g, g(p.Exp(x)), 1.0)


@aten("exp2.default")
def exp2(g: Graph, x: Value) -> Value:
    return g(p.Exp(mul(g, x, math.log(2.0))))


@aten("log2.default")
def log2(g: Graph, x: Value) -> Value:
    return mul(g, g(p.Log(x)), 1 / math.log(2.0))


# --- comparison, logic, choice ------------------------------------------------------------------------------------


def _binary(cls: type[p.Binary]) -> Rule:
    def rule(g: Graph, x: Operand, y: Operand) -> Value:
        return g(cls(*g.common(x, y)))
    return rule


_COMPARE: dict[str, type[p.Binary]] = {"eq": p.Equal, "ne": p.NotEqual, "lt": p.Less, "le": p.LessEqual, "gt": p.Greater,
                                       "ge": p.GreaterEqual}
RULES.update({f"aten.{name}.{kind}": _binary(cls) for name, cls in _COMPARE.items() for kind in ("Tensor", "Scalar")})


def _logical(cls: type[Op]) -> Rule:
    def rule(g: Graph, *args: Operand) -> Value:
        if not g.name.startswith("aten.logical") and g.out.dtype != bool_:
            raise g.unsupported("bit operations on integers")
        return g(cls(*(g.tensor(x, bool_) for x in args)))
    return rule


_LOGIC: dict[str, type[Op]] = {"and": p.And, "or": p.Or, "not": p.Not, "xor": p.NotEqual}
for _name, _cls in _LOGIC.items():
    RULES[f"aten.logical_{_name}.default"] = _logical(_cls)
    for _kind in ("Tensor", "Scalar", "default"):
        RULES[f"aten.bitwise_{_name}.{_kind}"] = RULES[f"aten.__{_name}__.{_kind}"] = _logical(_cls)


@aten("isinf.default")
def isinf(g: Graph, x: Value) -> Value:
    return g(p.Equal(*g.common(g(p.Abs(x)), math.inf)))


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(g: Graph, cond: Value, x: Operand, y: Operand) -> Value:
    return g(p.Where(g.cast(cond, bool_), *g.common(x, y)))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(g: Graph, x: Value, mask: Value, value: Operand) -> Value:
    return g(p.Where(g.cast(mask, bool_), g.tensor(value, x.type.dtype), x))


# --- element types ------------------------------------------------------------------------------------------------


@aten("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default")
def to_copy(g: Graph, x: Value, *_: object, **layout: object) -> Value:
    return g.cast(x, g.out.dtype)


@aten("clone.default", "alias.default", "detach.default", "detach_.default", "contiguous.default", "lift_fresh_copy.default",
      "lift_fresh.default", "dropout.default", "view.dtype", "positive.default", "feature_dropout.default", "alias_copy.default")
def identity(g: Graph, x: Value, *rest: object, **layout: object) -> Value:
    if x.type != g.out:
        raise g.unsupported(f"{x.type} read as {g.out}")
    return x
