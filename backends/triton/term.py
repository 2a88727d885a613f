"""Scalar expressions as Triton source: what stands for a value while a kernel is written.

`Silu.scalar(TRITON, x)` over terms gives the text `x * tl.sigmoid(x)`. A term knows the element type it is computed in and
the loop axes it depends on; f16, bf16 and fp8 are widened to f32 before any arithmetic. Triton has no e8m0: such powers of
two are bytes, their exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ingot.backends.triton.errors import NoKernel
from ingot.ir.types import DType, bool_, f8e8m0, f32, f64, i32, i64

_TYPES = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "bf16", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5", "f8e8m0": "u8",
          "i64": "i64", "i32": "i32", "i16": "i16", "i8": "i8", "i4": "i8", "i2": "i8",
          "u32": "i64", "u8": "u8", "u4": "u8", "u3": "u8", "u2": "u8", "bool": "i1"}
_LONG = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8e4nv": "float8e4nv",
         "fp8e5": "float8e5", "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "i1": "int1"}


def storable(dtype: DType) -> bool:
    """Whether kernels read and write tensors of this element type."""
    return dtype.name in _TYPES


def stored(dtype: DType) -> str:
    """What a pointer to tensors of this element type points to in a Triton signature; see `torch_dtype` for the tensors.

    Raises NoKernel for types no kernel touches.
    """
    if not storable(dtype):
        raise NoKernel(f"no kernel reads or writes {dtype}")
    return _TYPES[dtype.name]


def spelled(dtype: DType) -> str:
    """The element type in kernel source: `tl.float32`."""
    return f"tl.{_LONG[stored(dtype)]}"


def widened(dtype: DType) -> DType:
    """What values of this type are computed in: narrow floats in f32, packed integers as they are held."""
    if dtype.is_float:
        return f64 if dtype == f64 else f32
    return i32 if dtype.bits < 8 else i64 if dtype.name == "u32" else dtype


def literal(value: float, dtype: DType) -> str:
    """A number in kernel source."""
    if dtype == bool_:
        return f"tl.full((), {bool(value)}, tl.int1)"
    if not dtype.is_float:
        return str(int(value))
    text = repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
    # A plain number stands for float32 in Triton wherever it meets a function.
    return f"tl.full((), {text}, tl.float64)" if dtype == f64 else text


class Term:
    """A piece of kernel source with a value.

    text: the source. dtype: element type it has there. axes: names of the loop axes it depends on. atomic: whether it can
    be an operand without parentheses. number: what it is, where that is known now. padded: whether it is zero beyond the
    bounds of its axes, as what is loaded is.
    """

    __slots__ = ("atomic", "axes", "dtype", "number", "padded", "text")

    def __init__(self, text: str, dtype: DType, axes: frozenset[str] = frozenset(), *, atomic: bool = False,
                 number: float | None = None, padded: bool = False) -> None:
        self.text = text
        self.dtype = dtype
        self.axes = axes
        self.atomic = atomic
        self.number = number
        self.padded = padded

    @classmethod
    def constant(cls, number: float, dtype: DType) -> Term:
        return cls(literal(number, dtype), dtype, atomic=number >= 0, number=number)

    def __repr__(self) -> str:
        return f"<{self.text}: {self.dtype}>"

    @property
    def operand(self) -> str:
        return self.text if self.atomic else f"({self.text})"

    def to(self, dtype: DType) -> Term:
        """Converted: floats to integers truncate, anything to bool is `!= 0`."""
        if dtype == self.dtype or (not dtype.is_float and stored(dtype) == stored(self.dtype)):
            return self
        if f8e8m0 in (self.dtype, dtype):
            return self._exponent() if dtype == f8e8m0 else self._power().to(dtype)
        if self.number is not None:
            return Term.constant(self.number, dtype)
        if dtype == bool_:
            return self != 0
        return Term(f"{self.operand}.to({spelled(dtype)})", dtype, self.axes, atomic=True, padded=self.padded)

    def _exponent(self) -> Term:
        """The nearest power of two, the greater of two, as a byte e8m0: that of a positive number."""
        x = self.to(f32)
        bits = f"{x.operand if x.number is None else f'tl.full((), {x.text}, tl.float32)'}.to(tl.int32, bitcast=True)"
        return Term(f"(({bits} + 0x400000) >> 23).to(tl.uint8)", f8e8m0, self.axes, atomic=True)

    def _power(self) -> Term:
        """The power of two that a byte e8m0 stands for."""
        return Term(f"device.exponent({self.operand}.to(tl.int32))", f32, self.axes, atomic=True)

    def wide(self) -> Term:
        """Converted to the type it is computed in."""
        return self.to(widened(self.dtype))

    def _with(self, other: Any, operator: str, *, swap: bool = False, dtype: DType | None = None) -> Term:
        mine, its = self.operand, other.operand if isinstance(other, Term) else literal(other, self.dtype)
        left, right = (its, mine) if swap else (mine, its)
        return Term(f"{left} {operator} {right}", dtype or self.dtype, joined(self, other))

    def __add__(self, other: Any) -> Term:
        return self._with(other, "|" if self.dtype == bool_ else "+")

    def __radd__(self, other: Any) -> Term:
        return self._with(other, "+", swap=True)

    def __sub__(self, other: Any) -> Term:
        return self._with(other, "-")

    def __rsub__(self, other: Any) -> Term:
        return self._with(other, "-", swap=True)

    def __mul__(self, other: Any) -> Term:
        return self._with(other, "&" if self.dtype == bool_ else "*")

    def __rmul__(self, other: Any) -> Term:
        return self._with(other, "*", swap=True)

    def __truediv__(self, other: Any) -> Term:
        return self._with(other, "/")

    def __rtruediv__(self, other: Any) -> Term:
        return self._with(other, "/", swap=True)

    def __neg__(self) -> Term:
        return Term(f"-{self.operand}", self.dtype, self.axes)

    def __lt__(self, other: Any) -> Term:
        return self._with(other, "<", dtype=bool_)

    def __le__(self, other: Any) -> Term:
        return self._with(other, "<=", dtype=bool_)

    def __gt__(self, other: Any) -> Term:
        return self._with(other, ">", dtype=bool_)

    def __ge__(self, other: Any) -> Term:
        return self._with(other, ">=", dtype=bool_)

    def __eq__(self, other: Any) -> Term:  # type: ignore[override]
        return self._with(other, "==", dtype=bool_)

    def __ne__(self, other: Any) -> Term:  # type: ignore[override]
        return self._with(other, "!=", dtype=bool_)

    __hash__ = object.__hash__


def joined(*terms: Any) -> frozenset[str]:
    """The loop axes any of several terms (or plain numbers) depends on."""
    return frozenset().union(*(t.axes for t in terms if isinstance(t, Term)))


def call(function: str, *args: Any, options: str = "") -> Term:
    """`function(args)`; the result has the type of the first term among the arguments."""
    kind = next(a.dtype for a in args if isinstance(a, Term))
    shown = ", ".join(a.text if isinstance(a, Term) else literal(a, kind) for a in args)
    return Term(f"{function}({shown}{options})", kind, joined(*args), atomic=True)


def _unary(function: str) -> Callable[[Any, Term], Term]:
    return lambda self, x: call(function, x)


class TritonPrimitives:
    """`o` for `Pointwise.scalar`. What Triton's language lacks, or the interpreter cannot run, is in `device`."""

    exp = _unary("tl.exp")
    log = _unary("tl.log")
    sqrt = _unary("tl.sqrt")
    rsqrt = _unary("tl.rsqrt")
    sin = _unary("tl.sin")
    cos = _unary("tl.cos")
    erf = _unary("tl.erf")
    sigmoid = _unary("device.sigmoid")
    tanh = _unary("device.tanh")
    softplus = _unary("device.softplus")

    def abs(self, x: Term) -> Term:
        return x if x.dtype == bool_ else call("tl.abs", x)

    def floor(self, x: Term) -> Term:
        return call("tl.floor", x) if x.dtype.is_float else x

    def ceil(self, x: Term) -> Term:
        return call("tl.ceil", x) if x.dtype.is_float else x

    def round(self, x: Term) -> Term:
        return call("device.round_even", x) if x.dtype.is_float else x

    def sign(self, x: Term) -> Term:
        return call("device.sign", x)

    def maximum(self, x: Term, y: Any) -> Term:
        return self._extreme("maximum", "|", x, y)

    def minimum(self, x: Term, y: Any) -> Term:
        return self._extreme("minimum", "&", x, y)

    def _extreme(self, name: str, logic: str, x: Term, y: Any) -> Term:
        if x.dtype == bool_:
            return x._with(y, logic)
        # numpy and torch let a NaN through from either side.
        return call(f"tl.{name}", x, y, options=", propagate_nan=tl.PropagateNan.ALL" if x.dtype.is_float else "")

    def pow(self, x: Term, y: Any) -> Term:
        if not x.dtype.is_float:
            raise NoKernel("integer powers have no kernel")
        return call("device.power", x, y)

    def where(self, c: Term, x: Any, y: Any) -> Term:
        kind = next(t.dtype for t in (x, y) if isinstance(t, Term))
        x, y = (t.text if isinstance(t, Term) else literal(t, kind) for t in (x, y))
        return Term(f"tl.where({c.text}, {x}, {y})", kind, joined(c, x, y), atomic=True)

    def logical_not(self, x: Term) -> Term:
        return self._truth(x)._with(True, "^")

    def logical_and(self, x: Term, y: Term) -> Term:
        return self._truth(x)._with(self._truth(y), "&")

    def logical_or(self, x: Term, y: Term) -> Term:
        return self._truth(x)._with(self._truth(y), "|")

    def _truth(self, x: Term) -> Term:
        return x if x.dtype == bool_ else x != 0

    def floordiv(self, x: Term, y: Term) -> Term:
        return call("tl.floor", x / y) if x.dtype.is_float else call("device.floordiv", x, y)

    def mod(self, x: Term, y: Term) -> Term:
        return call("device.floatmod" if x.dtype.is_float else "device.mod", x, y)

    def isnan(self, x: Term) -> Term:
        return x != x


TRITON = TritonPrimitives()
