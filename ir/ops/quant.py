"""Quantised tensors as plain values: packed codes and scales that decode to floats."""

from __future__ import annotations

from typing import Any

from ingot.ir.axes import AxisMap
from ingot.ir.dims import Dim
from ingot.ir.formats import format_named, grouped
from ingot.ir.op import Op, attr
from ingot.ir.types import DType, TensorType, f32
from ingot.ir.value import Value


class Dequantize(Op):
    """Codes [..., k] to floats: groups of `group` along the last axis share scale[..., i] and zero[..., i].

    packed: codes of the format's element type. scale, zero: [..., ceil(k / group)]. dtype: of the result.
    """

    name = "dequantize"
    packed: Value
    scale: Value
    zero: Value | None = None
    format: str = attr(kw_only=True)
    group: int = attr(kw_only=True)
    dtype: DType = f32

    def infer(self) -> TensorType:
        fmt = format_named(self.format)
        self.need_floats(self.scale)
        if not self.packed.type.rank or self.group < 1 or not self.dtype.is_float:
            raise self.fail("packed must have an axis, group be 1 or more, and the result a float")
        if self.packed.type.dtype != fmt.code:
            raise self.fail(f"{self.format} codes are {fmt.code}")
        last = self.packed.type.dims[-1]
        groups: Dim = (last + self.group - 1) // self.group
        for value in (self.scale, self.zero):
            if value is not None and value.type.dims != (*self.packed.type.dims[:-1], groups):
                raise self.fail(f"scale and zero need {groups} groups of {self.group} in the last axis")
        return TensorType(self.dtype, self.packed.type.dims)

    def reference(self, packed: Any, scale: Any, zero: Any) -> Any:
        codes = grouped(packed, self.group)
        y = format_named(self.format).decode(codes, scale[..., None], None if zero is None else zero[..., None])
        return y.reshape(*packed.shape[:-1], -1)[..., :packed.shape[-1]]

    def axis_map(self) -> AxisMap:
        labels = tuple((f"a{i}",) for i in range(self.packed.type.rank))
        scale = (*labels[:-1], ("groups",))
        return AxisMap((labels, scale, scale) if self.zero is not None else (labels, scale), (labels,))
