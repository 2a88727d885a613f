"""Products of codes with codes: where what a linear reads is coded in 8 bits as its weight is, tensor cores multiply the codes,
and the steps come in behind. The codes of a word are bytes of it, so that the weight lies in memory once for all kernels. Where
both sides have a power of two for every 32 codes, it goes along into the product (see `scaled`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ingot.backends.triton.words import Packed
from ingot.ir.op import Op
from ingot.ir.ops.layout import Reshape
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.pointwise import Abs, Cast, Mul
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.reduce import Reduce
from ingot.ir.types import DType, f8e4m3, f8e8m0, i8
from ingot.ir.value import Value

KINDS = {"int8": i8, "fp8-e4m3": f8e4m3}
"""What codes of a weight are multiplied as, by format. Chips have 8-bit floats from compute capability 8.9 on."""
SCALED, SHARE = "mxfp4", 32
"""The format of weights whose codes are multiplied by those of MXFP8, and how many codes share a power of two on either side."""


@dataclass(frozen=True)
class Coded:
    """codes: of the left operand, [..., k]. step: what they are multiplied by, the same along k. kind: of both sides' codes."""

    codes: Value
    step: Value
    kind: DType

    @property
    def total(self) -> str:
        """What products are added up in."""
        return "tl.int32" if self.kind == i8 else "tl.float32"


def coded_product(op: Linear | MatMul, packed: Packed | None) -> Coded | None:
    """A product as one of codes, where each row of the weight has one step, and no zero point or further scale."""
    if packed is None or not isinstance(op, Linear) or packed.columns_of("steps") != 1 or packed.form.bytes:
        return None
    read = decoded(op.x)
    if read is None or read.kind != KINDS.get(packed.form.format) or not {*packed.pointers} <= {"words", "steps"}:
        return None
    return read


@dataclass(frozen=True)
class Scaled:
    """A left operand in MXFP8. codes: f8e4m3[..., k / 32, 32]. scale: f8e8m0[..., k / 32, 1]."""

    codes: Value
    scale: Value


def scaled_product(op: Linear | MatMul, packed: Packed | None) -> Scaled | None:
    """A product of codes under powers of two for every 32 of them: MXFP8 times MXFP4."""
    if packed is None or not isinstance(op, Linear) or packed.form.format != SCALED or packed.form.bytes != f8e8m0.name:
        return None
    return in_blocks(op.x)


def in_blocks(value: Value) -> Scaled | None:
    """What a value is read from, where that is MXFP8 (see `ir.float_coding`)."""
    path = _path(value.op.x) if isinstance(value.op, Reshape) else None
    if path is None or not isinstance(value.op, Reshape) or value.op.x.type.dims[:-2] != value.type.dims[:-1]:
        return None
    *_, product, cast = path
    codes, factor = cast.operands[0], product.operands[1]
    scale = factor.op.x if isinstance(factor.op, Cast) else factor
    kinds = (codes.type.dtype, scale.type.dtype)
    alike = scale.type.dims == (*codes.type.dims[:-1], 1) and codes.type.dims == value.op.x.type.dims
    return Scaled(codes, scale) if kinds == (f8e4m3, f8e8m0) and alike and codes.type.dims[-1] == SHARE else None


def decoded(value: Value) -> Coded | None:
    """What a value is read from, where that is codes times a step."""
    path = _path(value)
    if path is None:
        return None
    *_, product, cast = path
    codes, step = cast.operands[0], product.operands[1]
    alike = codes.type.dims == value.type.dims and all(d == 1 for d in step.type.dims[-1:])
    return Coded(codes, step, codes.type.dtype) if alike and codes.type.dtype in KINDS.values() else None


def _path(value: Value) -> list[Op] | None:
    """The ops that read a value from codes, the last first: perhaps a cast to fewer bits, a product, a cast of codes."""
    narrowed: list[Op] = [value.op] if isinstance(value.op, Cast) and value.type.dtype.is_float else []
    product = value.op.x.op if isinstance(value.op, Cast) else value.op
    if not isinstance(product, Mul) or not isinstance(product.x.op, Cast):
        return None
    return [*narrowed, product, product.x.op]


def for_products(op: Op, readers: list[Op]) -> bool:
    """Whether whoever reads an op's result does it himself: what decodes what only linears on codes of the same kind read, for
    these read the codes; magnitudes of which only the greatest is wanted; and powers of two, which are bytes in memory."""
    if isinstance(op, Abs):
        return bool(readers) and all(isinstance(r, Reduce) for r in readers)
    if isinstance(op, Cast) and op.x.type.dtype == f8e8m0:
        return True
    return bool(readers) and all(isinstance(r, Linear) and _leaves(op, r) for r in readers)


def _leaves(op: Op, reader: Linear) -> bool:
    """Whether an op decodes what a product of codes reads."""
    x, weight = reader.x, reader.w.op
    if not isinstance(weight, Dequantize):
        return False
    if weight.format == SCALED and isinstance(x.op, Reshape):
        return in_blocks(x) is not None and op in (_path(x.op.x) or ())
    read = decoded(x)
    return read is not None and read.kind == KINDS.get(weight.format) and op in (_path(x) or ())
