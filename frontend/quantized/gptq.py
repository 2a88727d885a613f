"""GPTQ checkpoints (AutoGPTQ, GPTQModel): `qweight`, `qzeros`, `scales` and `g_idx` of every linear."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ingot.errors import CheckpointError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.frontend.quantized.layout import Layout, Settings, Source, Tensors
from ingot.ir.formats.words import unpack_words, words_for
from ingot.ir.types import bf16, f16, f32, i32
from ingot.ir.weights import FileWeight

BITS = (2, 3, 4, 8)


class Gptq(Layout):
    """qweight i32[in * bits / 32, out], codes packed along the inputs; qzeros i32[groups, out * bits / 32], packed along the
    outputs, one less than the zero points in the original format ("gptq") and themselves in "gptq_v2"; scales [groups, out];
    g_idx i32[in], the group of each input (a linear that lacks it has its groups in order).
    """

    name = "gptq"
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        kind = settings.get("checkpoint_format", settings.get("format")) or "gptq"
        if kind not in ("gptq", "gptq_v2"):
            raise CheckpointError(f"quantization_config: checkpoint_format {kind!r} is not supported", where="config.json",
                                  hint="supported: gptq and gptq_v2; convert it with GPTQModel, or take the float checkpoint")
        if settings.get("pack_dtype", "int32") != "int32":
            raise CheckpointError(f"quantization_config: pack_dtype {settings['pack_dtype']!r}; supported: int32",
                                  where="config.json")
        self.less = 1 if kind == "gptq" else 0
        self.bits = self.number("bits", among=BITS)
        self.group = self.number("group_size", default=128)

    def linears(self, tensors: Tensors) -> Iterator[str]:
        return (key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight"))

    def read(self, linear: str, tensors: Tensors) -> CodedWeight:
        weight = self.part(linear, tensors, "qweight", (i32,))
        scales = self.part(linear, tensors, "scales", (f16, bf16, f32))
        zeros = self.part(linear, tensors, "qzeros", (i32,))
        rows, n = weight.type.shape
        bits, k = self.bits, rows * 32 // self.bits
        g_idx = self.part(linear, tensors, "g_idx", (i32,), rank=1) if "g_idx" in tensors else None
        if g_idx is not None:
            k = g_idx.type.shape[0]
            self.shaped(linear, "qweight", weight, (words_for(k, bits), n))
        group = k if self.group == -1 else self.group
        groups = -(-k // group) if group > 0 else 0
        self.shaped(linear, "scales", scales, (groups, n))
        self.shaped(linear, "qzeros", zeros, (groups, words_for(n, bits)))
        return self.coded(linear, (n, k), format=f"int{bits}", group=group, g_idx=g_idx, scale=(scales, np.transpose),
                          packed=(weight, lambda words: unpack_words(words.T, bits, k)),
                          zero=self._zero(zeros, bits, n))

    def _zero(self, zeros: FileWeight, bits: int, n: int) -> Source | None:
        """None where all zero points are the middle code: the weight is symmetric, whatever the configuration says."""
        fn = partial(zero_points, bits=bits, n=n, less=self.less)
        middle = 1 << (bits - 1)
        return None if (fn(zeros.materialize()) == middle).all() else (zeros, fn)


def zero_points(words: np.ndarray, *, bits: int, n: int, less: int) -> np.ndarray:
    """Zero points u8 [n, groups] of qzeros i32[groups, ...], stored `less` than they are.

    Whole words were subtracted from when they were made, so that the zero point 0 borrows from its neighbour: they are
    added to as a whole.
    """
    if less and 32 % bits == 0:
        ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
        words = (np.ascontiguousarray(words).view(np.uint32) + ones).view(np.int32)
        return unpack_words(words, bits, n).T
    return (unpack_words(words, bits, n) + np.uint8(less)).T
