"""onnxruntime's kernels on packed weights: MatMulNBits for linears, GatherBlockQuantized for embeddings.

Both take codes of 2, 4 or 8 bits with one row per output (or per token), in blocks of 2^n codes along the inputs, rows padded
to whole blocks, and zero points packed like the codes. `accuracy_level` 4 lets MatMulNBits quantise activations to int8 per
block, which is its fast path.

What they lack is made when the graph is loaded: scales of whole rows are repeated per block (onnxruntime folds that), 3-bit
codes become 4-bit ones (see `made_at_load`), and codes of e2m1 become 8-bit integers, without any weight changing, since twice
each of its values is a whole number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.made_at_load import LookedUp, Named, Plane, integers_of_e2m1, nibbles_of_three_bits
from ingot.backends.onnx.quant_parts import kernel_block, steps, work_type
from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.formats import Format, Integer, format_named, grouped, pack_bits
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType, f4e2m1, f32, u8
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

MATMUL_BITS = (2, 4, 8)
GATHER_BITS = (4, 8)
ACCURACY = 4


@dataclass(frozen=True)
class Kernel:
    """A weight [n, k] as the kernels take it: bits of a code, codes in a block, and the names of its tensors."""

    n: int
    k: int
    bits: int
    block: int
    codes: str
    scales: str
    zeros: str | None


def kernel(lo: Lowering, w: Value, allowed: tuple[int, ...]) -> Kernel:
    """The weight behind a value, for kernels of some bits. Raises Decline when they cannot take it."""
    op = w.op
    if not isinstance(op, Dequantize) or not all(isinstance(v, Const) for v in op.operands):
        raise Decline("the weight is not quantised, or not all of it is stored")
    fmt, (n, k) = format_named(op.format), op.packed.type.shape
    bits, block = kernel_bits(fmt), kernel_block(op.group, k)
    if not block or bits not in allowed or work_type(op) != f32:
        raise Decline(f"no kernel for {op.format} in groups of {op.group}")
    codes, zeros = stored_codes(lo, op)
    blocks = -(-k // block)
    scales = lo.emit("Mul", steps(lo, op), lo.const(0.5, f32)) if fmt.code == f4e2m1 else steps(lo, op)
    if op.scale.type.shape != (n, blocks):
        scales = lo.emit("Expand", scales, lo.const([n, blocks]))
        zeros = lo.emit("Expand", zeros, lo.const([n, -(-blocks * bits // 8)])) if zeros is not None else None
    return Kernel(n, k, bits, block, codes, scales, zeros)


def kernel_bits(fmt: Format) -> int:
    """Bits of the kernel that multiplies weights of a format as they are; 0 when there is none."""
    if fmt.code == f4e2m1:
        return 8
    return 0 if not isinstance(fmt, Integer) else 4 if fmt.bits == 3 else fmt.bits


def stored_codes(lo: Lowering, decode: Dequantize) -> tuple[str, str | None]:
    """The initializers of the codes and zero points behind a dequantize, laid out for both kernels.

    Codes: u8[n, blocks, block * bits / 8]. Zero points: u8[n, ceil(groups * bits / 8)], those of whole rows in every place
    of a byte.
    """
    packed, zero, fmt = decode.packed, decode.zero, format_named(decode.format)
    assert isinstance(packed, Const)
    assert isinstance(zero, Const | None)
    block, bits = kernel_block(decode.group, packed.type.shape[1]), kernel_bits(fmt)

    def lay() -> Weight:
        if fmt.code == f4e2m1:
            return _integers(lo, packed, block, fmt)
        return _nibbles(lo, packed, block, middle=zero is None) if fmt.bits == 3 else _blocks(lo, packed, block)

    b = lo.stored((packed.weight, "nbits", block, zero is None), packed.name, lay)
    return b, lo.stored((zero.weight, "nbits"), zero.name, lambda: _zeros(lo, zero, bits)) if zero is not None else None


def _blocks(lo: Lowering, codes: Const, block: int) -> Weight:
    """Codes [n, k] as bytes [n, blocks, block * bits / 8]."""
    (n, k), bits = codes.type.shape, codes.type.dtype.bits
    shape = (n, -(-k // block), block * bits // 8)
    return lo.derive(codes.weight, TensorType(u8, shape),
                     lambda a: pack_bits(grouped(a.astype(np.uint8), block), bits).reshape(shape))


def _nibbles(lo: Lowering, codes: Const, block: int, *, middle: bool) -> Weight:
    """3-bit codes [n, k] as bytes of 4-bit ones [n, blocks, block / 2]; middle: moved so that the middle is 8, which was 4.

    Stored as the lower two bits of all codes of a row, then the upper ones: bytes [n, blocks * block * 3 / 8].
    """
    n, k = codes.type.shape
    blocks = -(-k // block)
    width = blocks * block

    def rows(array: np.ndarray) -> np.ndarray:
        return grouped(array.astype(np.uint8), block).reshape(n, width)

    def planes(array: np.ndarray) -> np.ndarray:
        return np.concatenate([pack_bits(rows(array) & np.uint8(3), 2), pack_bits(rows(array) >> np.uint8(2), 1)], -1)

    def whole(array: np.ndarray) -> np.ndarray:
        return pack_bits(rows(array) + np.uint8(4 if middle else 0), 4).reshape(shape)

    shape = (n, blocks, block // 2)
    made = TensorType(u8, shape)
    packed = Named(f"{codes.name}.planes", lo.derive(codes.weight, TensorType(u8, (n, width * 3 // 8)), planes))
    low, high = nibbles_of_three_bits(middle=middle)
    return LookedUp(made, lo.derive(codes.weight, made, whole), packed, (Plane(width // 4, low), Plane(width // 8, high)))


def _integers(lo: Lowering, codes: Const, block: int, fmt: Format) -> Weight:
    """e2m1 codes [n, k] as twice their values above 128, bytes [n, blocks, block]; stored as rows of nibbles."""
    n, k = codes.type.shape
    shape = (n, -(-k // block), block)
    width = shape[1] * block

    def whole(array: np.ndarray) -> np.ndarray:
        return (128 + 2 * grouped(array.astype(np.float32), block)).astype(np.uint8)

    def padded(array: np.ndarray) -> np.ndarray:
        return fmt.pack(grouped(array, block).reshape(n, width))

    made = TensorType(u8, shape)
    packed = Named(f"{codes.name}.bytes", lo.derive(codes.weight, TensorType(u8, (n, width // 2)), padded))
    return LookedUp(made, lo.derive(codes.weight, made, whole), packed, (Plane(width // 2, integers_of_e2m1()),))


def _zeros(lo: Lowering, zero: Const, bits: int) -> Weight:
    """Zero points [n, groups] as bytes [n, ceil(groups * bits / 8)]; a single one fills its byte."""
    n, groups = zero.type.shape
    shape = (n, -(-groups * bits // 8))

    def pack(array: np.ndarray) -> np.ndarray:
        codes = array.astype(np.uint8)
        return pack_bits(np.repeat(codes, 8 // bits, -1) if groups == 1 else codes, bits).reshape(shape)

    return lo.derive(zero.weight, TensorType(u8, shape), pack)


@rule(Linear, contrib=True)
def linear(op: Linear, lo: Lowering) -> str:
    w = kernel(lo, op.w, MATMUL_BITS)
    bias = lo(op.bias) if op.bias is not None else None
    return lo.emit("MatMulNBits", lo(op.x), w.codes, w.scales, w.zeros, None, bias, domain=CONTRIB_DOMAIN, K=w.k, N=w.n,
                   bits=w.bits, block_size=w.block, accuracy_level=ACCURACY)


@rule(Embedding, contrib=True)
def embedding(op: Embedding, lo: Lowering) -> str:
    w = kernel(lo, op.w, GATHER_BITS)
    if w.k % w.block:
        raise Decline("GatherBlockQuantized needs whole groups")
    flat = lo.emit("Reshape", w.codes, lo.const([w.n, -1]))
    return lo.emit("GatherBlockQuantized", flat, lo(op.ids), w.scales, w.zeros, domain=CONTRIB_DOMAIN,
                   bits=w.bits, block_size=w.block, gather_axis=0, quantize_axis=1)
