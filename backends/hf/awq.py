"""AWQ's GEMM layout, as AutoAWQ writes it and vLLM, SGLang and transformers read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ingot.backends.hf.layout import Layout, Matrix, Parts, alike, narrowed
from ingot.ir.formats.words import AWQ_ORDER, pack_words, words_for
from ingot.ir.types import DType, TensorType, f16, i32

_BITS = 4


class Awq(Layout):
    """qweight i32[in, out / 8] and qzeros i32[groups, out / 8], eight outputs in a word in AWQ's order; scales f16[groups, out].

    Every weight has zero points; those of a symmetric one are 8.
    """

    name = "awq"

    def check(self, m: Matrix) -> None:
        if not m.integers or m.format.bits != _BITS:
            raise m.fail(f"awq holds int{_BITS}, this weight is {m.format.name}", hint="use --layout compressed-tensors")
        if m.shape[0] % len(AWQ_ORDER) or m.shape[1] % m.group:
            raise m.fail(f"awq holds weights with a multiple of {len(AWQ_ORDER)} outputs and whole groups, this is "
                         f"{list(m.shape)} in groups of {m.group}", hint="take another group: quantize{group=...}")

    def scale(self, m: Matrix) -> DType:
        return f16

    def types(self, m: Matrix) -> dict[str, TensorType]:
        n, k = m.shape
        return {"qweight": TensorType(i32, (k, words_for(n, _BITS))), "qzeros": TensorType(i32, (m.groups, words_for(n, _BITS))),
                "scales": TensorType(f16, (m.groups, n))}

    def tensors(self, m: Matrix, parts: Parts) -> dict[str, np.ndarray]:
        middle = np.full((m.shape[0], m.groups), 1 << (_BITS - 1), np.uint8)
        zero = parts["zero"].astype(np.uint8) if "zero" in parts else middle
        return {"qweight": pack_words(parts["packed"].astype(np.uint8).T, _BITS, order=AWQ_ORDER),
                "qzeros": pack_words(zero.T, _BITS, order=AWQ_ORDER), "scales": narrowed(m, parts["scale"], f16).T}

    def settings(self, matrices: Sequence[Matrix], floats: Sequence[str]) -> dict[str, Any]:
        return {"quant_method": "awq", "bits": _BITS, "group_size": alike(self, matrices).group_size, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": list(floats) or None}
