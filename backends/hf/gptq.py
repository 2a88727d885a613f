"""GPTQ's layout, as AutoGPTQ and GPTQModel write it and vLLM, SGLang and transformers read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ingot.backends.hf.layout import Layout, Matrix, Parts, alike, narrowed
from ingot.ir.formats.words import pack_words, words_for
from ingot.ir.types import DType, TensorType, f16, i32

_STEP = 32
"""Kernels for this layout take weights whose sides are multiples of it."""


class Gptq(Layout):
    """qweight i32[in * bits / 32, out], qzeros i32[groups, out * bits / 32], scales f16[groups, out], g_idx i32[in].

    The zero points are stored one less than they are (Frantar et al., github.com/IST-DASLab/gptq, and AutoGPTQ after it), so
    that 0 cannot be.
    """

    name = "gptq"
    less: ClassVar[int] = 1

    def check(self, m: Matrix) -> None:
        if not m.integers:
            raise m.fail(f"{self.name} holds integers, this weight is {m.format.name}", hint="use --layout compressed-tensors")
        if m.shape[0] % _STEP or m.shape[1] % _STEP:
            raise m.fail(f"{self.name} holds weights whose sides are multiples of {_STEP}, this is {list(m.shape)}",
                         hint="use --layout compressed-tensors, or leave the weight: quantize{skip=...}")

    def scale(self, m: Matrix) -> DType:
        return f16

    def types(self, m: Matrix) -> dict[str, TensorType]:
        (n, k), bits = m.shape, m.format.bits
        return {"qweight": TensorType(i32, (words_for(k, bits), n)), "qzeros": TensorType(i32, (m.groups, words_for(n, bits))),
                "scales": TensorType(f16, (m.groups, n)), "g_idx": TensorType(i32, (k,))}

    def tensors(self, m: Matrix, parts: Parts) -> dict[str, np.ndarray]:
        (n, k), bits = m.shape, m.format.bits
        zero = parts["zero"].astype(np.uint8) if "zero" in parts else np.full((n, m.groups), 1 << (bits - 1), np.uint8)
        if self.less and not zero.all():
            raise m.fail("it has the zero point 0, which gptq's original format does not hold",
                         hint="use --layout gptq-v2 or compressed-tensors, or quantize{symmetric}")
        return {"qweight": pack_words(parts["packed"].astype(np.uint8), bits).T,
                "qzeros": pack_words(zero.T - np.uint8(self.less), bits), "scales": narrowed(m, parts["scale"], f16).T,
                "g_idx": (np.arange(k) // m.group).astype(np.int32)}

    def settings(self, matrices: Sequence[Matrix], floats: Sequence[str]) -> dict[str, Any]:
        first = alike(self, matrices)
        skipped: dict[str, Any] = {f"-:^{re.escape(name)}$": {} for name in floats if name != "lm_head"}
        return {"quant_method": "gptq", "bits": first.format.bits, "group_size": first.group_size, "desc_act": False,
                "sym": all(m.symmetric for m in matrices), "lm_head": any(m.linear == "lm_head" for m in matrices),
                "checkpoint_format": self.name.replace("-", "_"), "pack_dtype": "int32",
                **({"dynamic": skipped} if skipped else {})}


class GptqV2(Gptq):
    """The same with zero points stored as they are."""

    name = "gptq-v2"
    less = 0
