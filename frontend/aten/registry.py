"""The table of rules, and what a rule works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ingot.errors import UnsupportedOp
from ingot.ir.dims import Dim, Expr
from ingot.ir.module import Builder, Func
from ingot.ir.ops.creation import Scalar, Size
from ingot.ir.ops.pointwise import Cast
from ingot.ir.types import DType, TensorType, bf16, bool_, f8e4m3, f8e5m2, f16, f32, f64, i8, i16, i32, i64, promote, u8
from ingot.ir.value import Value

Rule = Callable[..., Any]
"""`rule(g, *args, **kwargs)`: the torch op's arguments, tensors as values, sizes as dims, dtypes as DType. It returns the
value of the result, or a tuple of values (None for a result no model uses)."""

R = TypeVar("R", bound=Rule)

RULES: dict[str, Rule] = {}
"""Rules by full torch op name, `aten.add.Tensor`."""

TORCH_DTYPES: dict[torch.dtype, DType] = {
    torch.float64: f64, torch.float32: f32, torch.float16: f16, torch.bfloat16: bf16, torch.float8_e4m3fn: f8e4m3,
    torch.float8_e5m2: f8e5m2, torch.int64: i64, torch.int32: i32, torch.int16: i16, torch.int8: i8, torch.uint8: u8,
    torch.bool: bool_,
}


def aten(*names: str) -> Callable[[R], R]:
    """Register a rule for torch ops, `add.Tensor` for `aten.add.Tensor`; a name with two dots is taken as it is."""
    def register(rule: R) -> R:
        for name in names:
            RULES[name if name.count(".") == 2 else f"aten.{name}"] = rule
        return rule
    return register


class Graph(Builder):
    """The func being built, and what torch says about the op at hand.

    outs: the types torch gives the results. name: the torch op, for messages.
    """

    def __init__(self, func: Func) -> None:
        super().__init__(func)
        self.outs: tuple[TensorType | None, ...] = ()
        self.name = ""

    @property
    def out(self) -> TensorType:
        """The type torch gives the (first) result."""
        first = self.outs[0]
        assert first is not None
        return first

    def unsupported(self, message: str) -> UnsupportedOp:
        """An error about the op at hand, which the rule knows but not in this form."""
        return UnsupportedOp(f"{self.name}: {message}", where=self.loc)

    def cast(self, value: Value, dtype: DType) -> Value:
        """`value` in another element type, itself when it has it already."""
        return value if value.type.dtype == dtype else self(Cast(value, dtype))

    def scalar(self, number: float | Dim, dtype: DType) -> Value:
        """A rank-0 tensor. Narrow floats get f32, which does not widen what they are combined with."""
        if isinstance(number, Expr):
            return self.cast(self(Size(number)), dtype)
        return self(Scalar(float(number), f32 if dtype.is_float and dtype.bits < 32 else dtype))

    def tensor(self, x: Value | float | Dim, dtype: DType) -> Value:
        """A tensor of `dtype` from a value, or a rank-0 one from a number or a dim."""
        return self.cast(x, dtype) if isinstance(x, Value) else self.scalar(x, dtype)

    def common(self, *args: Value | float | Dim) -> tuple[Value, ...]:
        """The arguments as tensors of the one element type torch computes in."""
        dtype = common_dtype(args)
        return tuple(self.tensor(x, dtype) for x in args)


def common_dtype(args: Sequence[Value | float | Dim]) -> DType:
    """torch's type promotion: tensors by `promote`, then numbers, which count by their category alone."""
    kind: TensorType | None = None
    for x in args:
        if isinstance(x, Value):
            dims = x.type.dims if kind is None else max(kind.dims, x.type.dims, key=len)
            kind = TensorType(x.type.dtype if kind is None else promote(kind, x.type), dims)
    dtype = bool_ if kind is None else kind.dtype
    for x in args:
        if isinstance(x, float) and not dtype.is_float:
            dtype = f32
        elif isinstance(x, int | Expr) and not isinstance(x, bool) and dtype == bool_:
            dtype = i64
    return dtype
