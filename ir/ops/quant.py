"""Quantised tensors as plain values: packed codes and scales that decode to floats."""

from __future__ import annotations

from typing import Any

from ingot.ir.axes import AxisMap
from ingot.ir.dims import Dim, product
from ingot.ir.formats import dequantized, format_named, steps
from ingot.ir.formats.scaling import SUPERBLOCK
from ingot.ir.op import Op, attr
from ingot.ir.types import DType, TensorType, f32, u8
from ingot.ir.value import Value


class Dequantize(Op):
    """Codes [..., k] to floats: groups of `group` along the last axis share a step and a zero point.

    packed: codes of the format's element type. scale: [..., ceil(k / group)], floats or u8 codes of steps; leading axes are
    packed's, or 1 where all share a step. zero: as scale. tensor_scale: multiplies the scales, f32[] or one for each 256 of
    them in row-major order; offset: f32[], then added (see `formats.scaling.steps`). dtype: of the result.
    """

    name = "dequantize"
    packed: Value
    scale: Value
    zero: Value | None = None
    tensor_scale: Value | None = None
    offset: Value | None = None
    format: str = attr(kw_only=True)
    group: int = attr(kw_only=True)
    dtype: DType = f32

    def infer(self) -> TensorType:
        fmt = format_named(self.format)
        if not self.packed.type.rank or self.group < 1 or not self.dtype.is_float:
            raise self.fail("packed must have an axis, group be 1 or more, and the result a float")
        if self.packed.type.dtype != fmt.code:
            raise self.fail(f"{self.format} codes are {fmt.code}")
        *rows, last = self.packed.type.dims
        groups: Dim = (last + self.group - 1) // self.group
        dims = self.scale.type.dims
        if dims[-1:] != (groups,) or len(dims) != len(rows) + 1 or any(d not in (1, row) for d, row in zip(dims, rows)):
            raise self.fail(f"scale needs {groups} groups of {self.group} in the last axis, and packed's other axes or 1")
        if self.zero is not None and (self.zero.type.dims != dims or not fmt.has_zero_points):
            raise self.fail("zero has the shape of scale" if fmt.has_zero_points else f"{self.format} has no zero points")
        coded = self.scale.type.dtype == u8
        self.need_floats(None if coded else self.scale, self.tensor_scale, self.offset)
        blocks: Dim = (product(dims) + SUPERBLOCK - 1) // SUPERBLOCK
        if self.tensor_scale is None and coded:
            raise self.fail("coded scales need a tensor_scale")
        if self.tensor_scale is not None and self.tensor_scale.type.dims not in ((), (blocks,)):
            raise self.fail(f"tensor_scale is one number, or {blocks}: one for each {SUPERBLOCK} scales")
        if self.offset is not None and self.offset.type.rank:
            raise self.fail("offset is one number")
        return TensorType(self.dtype, self.packed.type.dims)

    def reference(self, packed: Any, scale: Any, zero: Any, tensor_scale: Any, offset: Any) -> Any:
        return dequantized(format_named(self.format), self.group, packed, steps(scale, tensor_scale, offset), zero)

    def axis_map(self) -> AxisMap:
        labels = tuple((f"a{i}",) for i in range(self.packed.type.rank))
        scale = (*(() if d == 1 != row else label for d, row, label in
                   zip(self.scale.type.dims, self.packed.type.dims, labels[:-1])), ("groups",))
        second = [(() if not v.type.rank else (("blocks",),)) for v in (self.tensor_scale, self.offset) if v is not None]
        return AxisMap((labels, scale, *([scale] if self.zero is not None else []), *second), (labels,))
