"""onnxruntime's kernels on packed weights: MatMulNBits for linears, GatherBlockQuantized for embeddings.

Both take codes with one row per output (or per token), groups of 2^n codes along the inputs, rows of groups padded to
whole blocks, and zero points packed like the codes. `accuracy_level` 4 lets MatMulNBits quantise activations to int8 per
block, which is its fast path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.formats import format_named, grouped, pack_bits
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType, u8
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

MATMUL_BITS = (2, 4, 8)
GATHER_BITS = (4, 8)
GROUPS = (16, 32, 64, 128, 256)
ACCURACY = 4


def packed_parts(w: Value, bits: tuple[int, ...]) -> tuple[Dequantize, Const, Const, Const | None]:
    """The dequantize behind a weight and its constants. Raises Decline when the kernels cannot take them."""
    op = w.op
    if not isinstance(op, Dequantize) or not isinstance(op.packed, Const) or not isinstance(op.scale, Const):
        raise Decline("the weight is not quantised")
    if op.zero is not None and not isinstance(op.zero, Const):
        raise Decline("the zero points are computed")
    if format_named(op.format).bits not in bits or op.group not in GROUPS:
        raise Decline(f"no kernel for {op.format} in groups of {op.group}")
    return op, op.packed, op.scale, op.zero


def codes(lo: Lowering, const: Const, bits: int, group: int) -> Weight:
    """Codes [n, k] as bytes [n, blocks, group * bits / 8]."""
    n, k = const.type.shape
    blocks = -(-k // group)
    shape = (n, blocks, group * bits // 8)

    def pack(array: np.ndarray) -> np.ndarray:
        return pack_bits(grouped(array.astype(np.uint8), group), bits).reshape(shape)

    return lo.derive(const.weight, TensorType(u8, shape), pack)


def zeros(lo: Lowering, const: Const, bits: int) -> Weight:
    """Zero points [n, blocks] as bytes [n, ceil(blocks * bits / 8)]."""
    n, blocks = const.type.shape
    shape = (n, -(-blocks * bits // 8))
    return lo.derive(const.weight, TensorType(u8, shape), lambda a: pack_bits(a.astype(np.uint8), bits).reshape(shape))


def stored_codes(lo: Lowering, decode: Dequantize) -> tuple[str, str | None]:
    """The initializers of the codes and zero points behind a dequantize, laid out for both kernels."""
    packed, zero, bits = decode.packed, decode.zero, format_named(decode.format).bits
    assert isinstance(packed, Const)
    assert isinstance(zero, Const | None)
    b = lo.stored((packed.weight, "nbits"), packed.name, lambda: codes(lo, packed, bits, decode.group))
    z = lo.stored((zero.weight, "nbits"), zero.name, lambda: zeros(lo, zero, bits)) if zero is not None else None
    return b, z


@rule(Linear, contrib=True)
def linear(op: Linear, lo: Lowering) -> str:
    decode, packed, scale, _ = packed_parts(op.w, MATMUL_BITS)
    n, k = packed.type.shape
    b, z = stored_codes(lo, decode)
    bias = lo(op.bias) if op.bias is not None else None
    return lo.emit("MatMulNBits", lo(op.x), b, lo.weight(scale), z, None, bias, domain=CONTRIB_DOMAIN, K=k, N=n,
                   bits=format_named(decode.format).bits, block_size=decode.group, accuracy_level=ACCURACY)


@rule(Embedding, contrib=True)
def embedding(op: Embedding, lo: Lowering) -> str:
    decode, packed, scale, _ = packed_parts(op.w, GATHER_BITS)
    n, k = packed.type.shape
    if k % decode.group:
        raise Decline("GatherBlockQuantized needs whole groups")
    b, z = stored_codes(lo, decode)
    flat = lo.emit("Reshape", b, lo.const([n, -1]))
    return lo.emit("GatherBlockQuantized", flat, lo(op.ids), lo.weight(scale), z, domain=CONTRIB_DOMAIN,
                   bits=format_named(decode.format).bits, block_size=decode.group, gather_axis=0, quantize_axis=1)
