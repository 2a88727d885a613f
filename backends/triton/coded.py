"""Products of codes with codes: where what a linear reads is coded in 8 bits as its weight is, tensor cores multiply the codes,
and the steps come in behind. The codes of a word are bytes of it, so that the weight lies in memory once for all kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingot.backends.triton.words import Packed
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.pointwise import Cast, Mul
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, f8e4m3, i8
from ingot.ir.value import Value

KINDS = {"int8": i8, "fp8-e4m3": f8e4m3}
"""What codes of a weight are multiplied as, by format. Chips have 8-bit floats from compute capability 8.9 on."""


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


def decoded(value: Value) -> Coded | None:
    """What a value is read from, where that is codes times a step."""
    if not isinstance(value.op, Mul) or not isinstance(value.op.x.op, Cast):
        return None
    codes, step = value.op.x.op.x, value.op.y
    alike = codes.type.dims == value.type.dims and all(d == 1 for d in step.type.dims[-1:])
    return Coded(codes, step, codes.type.dtype) if alike and codes.type.dtype in KINDS.values() else None


def for_products(op: Op, readers: list[Op]) -> bool:
    """Whether an op decodes what only linears on codes of the same kind read; they read the codes, then."""
    value = op.results[0]
    read = [value] if isinstance(op, Mul) else [v for user in value.users for v in user.results]
    kinds = {None if found is None else found.kind for found in map(decoded, read)}
    return bool(readers) and all(
        isinstance(r, Linear) and isinstance(r.w.op, Dequantize) and kinds == {KINDS.get(r.w.op.format)} and None not in kinds
        for r in readers)
