"""Elementwise ops."""

from __future__ import annotations

import numpy as np

from ingot.ir.op import Op
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.pointwise import (
    Abs,
    Add,
    And,
    Cast,
    Ceil,
    Clamp,
    Cos,
    Div,
    Elu,
    Equal,
    Erf,
    Exp,
    Floor,
    FloorDiv,
    Gelu,
    Greater,
    GreaterEqual,
    HardSigmoid,
    HardSwish,
    IsNan,
    LeakyRelu,
    Less,
    LessEqual,
    Log,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Neg,
    Not,
    NotEqual,
    Or,
    Pow,
    Reciprocal,
    Relu,
    Round,
    Rsqrt,
    Sigmoid,
    Sign,
    Silu,
    Sin,
    Softplus,
    Sqrt,
    Sub,
    Tanh,
    Where,
)
from ingot.ir.types import bf16, bool_, f16, f32, f64, i8, i32, i64, u8
from tests.backends.op_case import B, Draw, S, between, bits, case, normal, positive

UNARY: dict[type[Op], Draw] = {
    Neg: normal, Abs: normal, Sign: normal, Exp: normal, Log: positive, Sqrt: positive, Rsqrt: positive, Reciprocal: positive,
    Sin: normal, Cos: normal, Erf: normal, Floor: normal, Ceil: normal, Sigmoid: normal, Tanh: normal, Relu: normal,
    LeakyRelu: normal, Elu: normal, Silu: normal, Gelu: normal, Softplus: normal, HardSigmoid: normal, HardSwish: normal,
}
for _cls, _draw in UNARY.items():
    for _dtype in (f32, f16, bf16):
        case(_cls, str(_dtype), lambda c, k=_cls, d=_dtype, r=_draw: c(k(c.x(B, S, 3, dtype=d, draw=r))))
for _cls in (Sigmoid, Softplus, Tanh, Erf, Silu, Gelu):
    case(_cls, "large", lambda c, k=_cls: c(k(c.x(4, S, draw=lambda r, s: r.normal(size=s) * 60))))
for _cls in (Neg, Abs, Sign):
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, 4, dtype=i64, draw=between(-9, 9)))))
case(Gelu, "tanh", lambda c: c(Gelu(c.x(B, 7), approximate="tanh")))
case(Gelu, "sigmoid", lambda c: c(Gelu(c.x(B, 7), approximate="sigmoid")))
case(LeakyRelu, "slope", lambda c: c(LeakyRelu(c.x(B, 7), slope=0.3)))
case(Elu, "alpha", lambda c: c(Elu(c.x(B, 7), alpha=0.4)))
case(Round, "halves", lambda c: c(Round(c.x(B, 9, draw=lambda r, s: r.integers(-9, 9, size=s) / 2))))
case(Clamp, "both", lambda c: c(Clamp(c.x(B, 9), least=-0.5, greatest=0.75)))
case(Clamp, "least", lambda c: c(Clamp(c.x(B, 9, dtype=bf16), least=0.0)))
case(Clamp, "greatest of i64", lambda c: c(Clamp(c.x(B, 9, dtype=i64, draw=between(-9, 9)), greatest=3.0)))
case(IsNan, "f32", lambda c: c(IsNan(c.x(B, 9, draw=lambda r, s: np.where(r.random(s) < 0.5, np.nan, 1.0)))))

for _cls in (Add, Sub, Mul, Div, Maximum, Minimum):
    for _dtype in (f32, f16, bf16, f64):
        case(_cls, str(_dtype), lambda c, k=_cls, d=_dtype: c(k(c.x(B, S, 3, dtype=d), c.x(B, S, 3, dtype=d))))
    case(_cls, "broadcast", lambda c, k=_cls: c(k(c.x(B, 1, 3), c.x(S, 1))))
    case(_cls, "f32 with scalar f64", lambda c, k=_cls: c(k(c.x(B, 3), c(Scalar(1.5, f64)))))
    case(_cls, "bf16 with f32", lambda c, k=_cls: c(k(c.x(B, 3, dtype=bf16), c.x(3))))
for _cls in (Add, Sub, Mul, Maximum, Minimum):
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, 5, dtype=i64, draw=between(-9, 9)), c.x(5, dtype=i64, draw=between(-9, 9)))))
    case(_cls, "i8 with i32",
         lambda c, k=_cls: c(k(c.x(B, 5, dtype=i8, draw=between(-9, 9)), c.x(5, dtype=i32, draw=between(-9, 9)))))
    case(_cls, "i8", lambda c, k=_cls: c(k(c.x(B, 5, dtype=i8, draw=between(-9, 9)), c.x(5, dtype=i8, draw=between(-9, 9)))))
case(Mul, "f32 with bool", lambda c: c(Mul(c.x(B, 5), c.x(B, 5, dtype=bool_, draw=bits))))
case(Add, "twice the same", lambda c: c(Add(x := c.x(B, 5), x)))


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, size=shape) * rng.choice([-1, 1], size=shape)


for _cls in (FloorDiv, Mod):
    case(_cls, "f32", lambda c, k=_cls: c(k(c.x(B, 31), c.x(B, 31, draw=_away_from_zero))))
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, 31, dtype=i64, draw=between(-9, 9)),
                                            c.x(31, dtype=i64, draw=lambda r, s: r.choice([-3, -2, 2, 3, 5], size=s)))))
case(Div, "broadcast divisor", lambda c: c(Div(c.x(B, S, 3), c.x(S, 1, draw=positive))))
case(Pow, "f32", lambda c: c(Pow(c.x(B, 9, draw=positive), c.x(9))))
case(Pow, "square", lambda c: c(Pow(c.x(B, 9), c(Scalar(2.0)))))
case(Pow, "i64", lambda c: c(Pow(c.x(B, 9, dtype=i64, draw=between(-4, 4)), c(Scalar(3, i64)))))

for _cls in (Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual):
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, S, dtype=i64, draw=between(0, 2)), c.x(S, dtype=i64, draw=between(0, 2)))))
    case(_cls, "f32", lambda c, k=_cls: c(k(c.x(B, S, draw=between(0, 2)), c.x(S, draw=between(0, 2)))))
    case(_cls, "i64 with f32", lambda c, k=_cls: c(k(c.x(B, S, dtype=i64, draw=between(0, 2)), c.x(S, draw=between(0, 2)))))
    case(_cls, "u8", lambda c, k=_cls: c(k(c.x(B, S, dtype=u8, draw=between(0, 2)), c.x(S, dtype=u8, draw=between(0, 2)))))
for _cls in (And, Or):
    case(_cls, "bool", lambda c, k=_cls: c(k(c.x(B, 9, dtype=bool_, draw=bits), c.x(9, dtype=bool_, draw=bits))))
case(Equal, "bool", lambda c: c(Equal(c.x(B, 9, dtype=bool_, draw=bits), c.x(9, dtype=bool_, draw=bits))))
case(And, "i64", lambda c: c(And(c.x(B, 9, dtype=i64, draw=between(0, 1)), c.x(9, dtype=i64, draw=between(0, 1)))))
case(Not, "bool", lambda c: c(Not(c.x(B, 9, dtype=bool_, draw=bits))))
for _dtype in (f32, bf16, i64):
    case(Where, str(_dtype),
         lambda c, d=_dtype: c(Where(c.x(B, 1, dtype=bool_, draw=bits), c.x(B, S, dtype=d, draw=between(-9, 9)),
                                                         c.x(S, dtype=d, draw=between(-9, 9)))))
case(Where, "bool",
     lambda c: c(Where(c.x(B, 9, dtype=bool_, draw=bits), c.x(9, dtype=bool_, draw=bits), c.x(9, dtype=bool_, draw=bits))))
case(Where, "scalar", lambda c: c(Where(c.x(B, 9, dtype=bool_, draw=bits), c.x(9), c(Scalar(float("-inf"))))))
for _source, _target in ((f32, bf16), (f32, f16), (bf16, f32), (f32, i64), (i64, f32), (f32, bool_), (i64, bool_), (bool_, f32),
                         (bool_, i64), (i64, i32), (u8, f32), (f32, f64), (f16, i8)):
    case(Cast, f"{_source} to {_target}", lambda c, s=_source, t=_target: c(Cast(c.x(B, 9, dtype=s, draw=between(0, 3)), t)))
case(Cast, "truncates", lambda c: c(Cast(c.x(B, 30), i32)))
