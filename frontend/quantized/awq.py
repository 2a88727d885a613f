"""AWQ checkpoints (AutoAWQ, llm-awq) in the GEMM layout: `qweight`, `qzeros` and `scales` of every linear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ingot.errors import CheckpointError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.frontend.quantized.layout import Layout, Settings, Tensors
from ingot.ir.formats.words import AWQ_ORDER, unpack_words, words_for
from ingot.ir.types import bf16, f16, f32, i32

BITS = 4


class Awq(Layout):
    """qweight i32[in, out / 8] and qzeros i32[groups, out / 8], packed along the outputs in AWQ's order; scales [groups, out]."""

    name = "awq"
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        kind = str(settings.get("version", settings.get("format")) or "gemm").lower()
        if kind != "gemm":
            raise CheckpointError(f"quantization_config: the AWQ layout {kind} is not supported", where="config.json",
                                  hint="supported: gemm; convert it, or take the float checkpoint")
        self.number("bits", among=(BITS,), default=BITS)
        self.group = self.number("group_size", default=128)

    def linears(self, tensors: Tensors) -> Iterator[str]:
        return (key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight"))

    def read(self, linear: str, tensors: Tensors) -> CodedWeight:
        weight = self.part(linear, tensors, "qweight", (i32,))
        scales = self.part(linear, tensors, "scales", (f16, bf16, f32))
        zeros = self.part(linear, tensors, "qzeros", (i32,))
        k, n = weight.type.shape[0], scales.type.shape[1]
        group = k if self.group == -1 else self.group
        groups = -(-k // group) if group > 0 else 0
        self.shaped(linear, "qweight", weight, (k, words_for(n, BITS)))
        self.shaped(linear, "scales", scales, (groups, n))
        self.shaped(linear, "qzeros", zeros, (groups, words_for(n, BITS)))

        def codes(words: np.ndarray) -> np.ndarray:
            return unpack_words(words, BITS, n, order=AWQ_ORDER).T

        symmetric = bool((codes(zeros.materialize()) == 1 << (BITS - 1)).all())
        return self.coded(linear, (n, k), format=f"int{BITS}", group=group, packed=(weight, codes), scale=(scales, np.transpose),
                          zero=None if symmetric else (zeros, codes))
