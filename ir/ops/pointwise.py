"""Elementwise ops with numpy broadcasting. Each is one scalar expression over `ingot.ir.scalar` primitives `o`."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ingot.errors import IRError
from ingot.ir.axes import AxisMap, elementwise
from ingot.ir.op import Op
from ingot.ir.scalar import NUMPY
from ingot.ir.types import DType, TensorType, bool_, broadcast, promote
from ingot.ir.value import Value


class Pointwise(Op):
    """Base: subclasses give `scalar(o, *operands)` where it is no primitive; attributes are read from self."""

    predicate: ClassVar[bool] = False
    """Whether the result is bool, whatever the operands are."""
    floating: ClassVar[bool] = False
    """Whether only floats are taken: integers must be cast first, so that nothing is truncated unseen."""
    numeric: ClassVar[bool] = False
    """Whether bools are refused."""

    def scalar(self, o: Any, *args: Any, **_: Any) -> Any:
        """The op on scalars; unless a class says otherwise, the primitive of the op's name."""
        return getattr(o, self.name)(*args)

    def infer(self) -> TensorType:
        if self.floating:
            self.need_floats(*self.operands)
        if self.numeric and any(v.type.dtype == bool_ for v in self.operands):
            raise self.fail("takes numbers; cast first")
        first, *rest = self.operands
        dtype = first.type.dtype
        kind = first.type
        for other in rest:
            dtype = promote(kind, other.type)
            kind = TensorType(dtype, max(kind.dims, other.type.dims, key=len))
        try:
            dims = broadcast(*(v.type.dims for v in self.operands))
        except IRError as error:
            raise self.fail(error.message) from None
        return TensorType(bool_ if self.predicate else dtype, dims)

    def reference(self, *inputs: Any, **_: Any) -> Any:
        return self.scalar(NUMPY, *inputs)

    def axis_map(self) -> AxisMap:
        return elementwise(self)


class Unary(Pointwise):
    x: Value


class Binary(Pointwise):
    x: Value
    y: Value


# --- arithmetic ---------------------------------------------------------------------------------------------------


class Add(Binary):
    name = "add"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x + y


class Sub(Binary):
    name = "sub"
    numeric = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x - y


class Mul(Binary):
    name = "mul"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x * y


class Div(Binary):
    """True division of floats (frontends cast integers first)."""

    name = "div"
    floating = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x / y


class FloorDiv(Binary):
    name = "floordiv"
    numeric = True


class Mod(Binary):
    """Remainder with the sign of the divisor, as in Python."""

    name = "mod"
    numeric = True


class Pow(Binary):
    name = "pow"
    numeric = True


class Maximum(Binary):
    name = "maximum"
    commutative = True


class Minimum(Binary):
    name = "minimum"
    commutative = True


class Neg(Unary):
    name = "neg"
    numeric = True

    def scalar(self, o: Any, x: Any) -> Any:
        return -x


class Abs(Unary):
    name = "abs"


class Sign(Unary):
    name = "sign"
    numeric = True


class Exp(Unary):
    name = "exp"
    floating = True


class Log(Unary):
    name = "log"
    floating = True


class Sqrt(Unary):
    name = "sqrt"
    floating = True


class Rsqrt(Unary):
    name = "rsqrt"
    floating = True


class Reciprocal(Unary):
    name = "reciprocal"
    floating = True

    def scalar(self, o: Any, x: Any) -> Any:
        return 1.0 / x


class Sin(Unary):
    name = "sin"
    floating = True


class Cos(Unary):
    name = "cos"
    floating = True


class Erf(Unary):
    name = "erf"
    floating = True


class Floor(Unary):
    name = "floor"
    numeric = True


class Ceil(Unary):
    name = "ceil"
    numeric = True


class Round(Unary):
    """To the nearest integer, halves to even."""

    name = "round"
    numeric = True


class Clamp(Unary):
    """x limited to [least, greatest]; an absent limit does not limit."""

    name = "clamp"
    numeric = True
    least: float | None = None
    greatest: float | None = None

    def scalar(self, o: Any, x: Any) -> Any:
        if self.least is not None:
            x = o.maximum(x, self.least)
        if self.greatest is not None:
            x = o.minimum(x, self.greatest)
        return x


# --- activations --------------------------------------------------------------------------------------------------


class Sigmoid(Unary):
    name = "sigmoid"
    floating = True


class Tanh(Unary):
    name = "tanh"
    floating = True


class Relu(Unary):
    name = "relu"
    numeric = True

    def scalar(self, o: Any, x: Any) -> Any:
        return o.maximum(x, 0)


class LeakyRelu(Unary):
    name = "leaky_relu"
    floating = True
    slope: float = 0.01

    def scalar(self, o: Any, x: Any) -> Any:
        return o.where(x > 0, x, x * self.slope)


class Elu(Unary):
    name = "elu"
    floating = True
    alpha: float = 1.0

    def scalar(self, o: Any, x: Any) -> Any:
        return o.where(x > 0, x, self.alpha * (o.exp(o.minimum(x, 0.0)) - 1.0))


class Silu(Unary):
    """x * sigmoid(x) (Swish; Elfwing et al. 2017)."""

    name = "silu"
    floating = True

    def scalar(self, o: Any, x: Any) -> Any:
        return x * o.sigmoid(x)


class Gelu(Unary):
    """Gaussian error linear unit (Hendrycks and Gimpel 2016); approximate: none, tanh, or sigmoid (x * sigmoid(1.702 x))."""

    name = "gelu"
    floating = True
    approximate: str = "none"

    def infer(self) -> TensorType:
        if self.approximate not in ("none", "tanh", "sigmoid"):
            raise self.fail(f"no approximation {self.approximate}; there are none, tanh and sigmoid")
        return super().infer()

    def scalar(self, o: Any, x: Any) -> Any:
        if self.approximate == "none":
            return 0.5 * x * (1.0 + o.erf(x * math.sqrt(0.5)))
        if self.approximate == "sigmoid":
            return x * o.sigmoid(1.702 * x)
        return 0.5 * x * (1.0 + o.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


class Softplus(Unary):
    name = "softplus"
    floating = True


class HardSigmoid(Unary):
    name = "hardsigmoid"
    floating = True

    def scalar(self, o: Any, x: Any) -> Any:
        return o.minimum(o.maximum(x / 6.0 + 0.5, 0.0), 1.0)


class HardSwish(Unary):
    name = "hardswish"
    floating = True

    def scalar(self, o: Any, x: Any) -> Any:
        return x * o.minimum(o.maximum(x / 6.0 + 0.5, 0.0), 1.0)


# --- comparison and logic -----------------------------------------------------------------------------------------


class Compare(Binary):
    predicate = True


class Equal(Compare):
    name = "eq"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x == y


class NotEqual(Compare):
    name = "ne"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x != y


class Less(Compare):
    name = "lt"

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x < y


class LessEqual(Compare):
    name = "le"

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x <= y


class Greater(Compare):
    name = "gt"

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x > y


class GreaterEqual(Compare):
    name = "ge"

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return x >= y


class And(Compare):
    name = "and"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return o.logical_and(x, y)


class Or(Compare):
    name = "or"
    commutative = True

    def scalar(self, o: Any, x: Any, y: Any) -> Any:
        return o.logical_or(x, y)


class Not(Unary):
    name = "not"
    predicate = True

    def scalar(self, o: Any, x: Any) -> Any:
        return o.logical_not(x)


class IsNan(Unary):
    name = "isnan"
    predicate = True


class Where(Pointwise):
    """x where the bool operand `cond` holds, else y."""

    name = "where"
    cond: Value
    x: Value
    y: Value

    def infer(self) -> TensorType:
        if self.cond.type.dtype != bool_:
            raise self.fail("the condition must be bool")
        try:
            dims = broadcast(self.cond.type.dims, self.x.type.dims, self.y.type.dims)
        except IRError as error:
            raise self.fail(error.message) from None
        return TensorType(promote(self.x.type, self.y.type), dims)

    def scalar(self, o: Any, cond: Any, x: Any, y: Any) -> Any:
        return o.where(cond, x, y)


class Cast(Op):
    """To another element type: floats round to nearest even, floats to integers truncate, anything to bool is `!= 0`."""

    name = "cast"
    x: Value
    dtype: DType

    def infer(self) -> TensorType:
        return self.x.type.with_dtype(self.dtype)

    def reference(self, x: Any) -> Any:
        if self.dtype.is_float:
            return x if x.dtype.kind == "f" else x.astype(np.float64)
        return x != 0 if self.dtype == bool_ else x.astype(self.dtype.numpy)

    def axis_map(self) -> AxisMap:
        return elementwise(self)
