"""Fine-grained fp8 checkpoints (DeepSeek-V3's layout): `weight` in e4m3 and `weight_scale_inv` for square blocks of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ingot.errors import CheckpointError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.frontend.quantized.layout import Layout, Settings, Tensors, activations_ignored
from ingot.ir.types import bf16, f8e4m3, f16, f32


class Fp8(Layout):
    """weight f8e4m3 [out, in]; weight_scale_inv [out / rows, in / columns], what blocks of rows x columns are multiplied with."""

    name = "fp8"
    parts = ("weight", "weight_scale_inv")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        block = settings.get("weight_block_size") or (128, 128)
        if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
            raise CheckpointError(f"quantization_config: weight_block_size is {block!r}, not two numbers", where="config.json")
        self.rows, self.columns = int(block[0]), int(block[1])
        activations_ignored("fp8")

    def linears(self, tensors: Tensors) -> Iterator[str]:
        return (key.removesuffix(".weight_scale_inv") for key in tensors if key.endswith(".weight_scale_inv"))

    def read(self, linear: str, tensors: Tensors) -> CodedWeight:
        weight = self.part(linear, tensors, "weight", (f8e4m3,))
        scale = self.part(linear, tensors, "weight_scale_inv", (f32, f16, bf16))
        n, k = weight.type.shape
        self.shaped(linear, "weight_scale_inv", scale, (-(-n // self.rows), -(-k // self.columns)))
        return self.coded(linear, (n, k), format="fp8-e4m3", group=self.columns, packed=(weight, np.asarray),
                          scale=(scale, lambda blocks: blocks.repeat(self.rows, 0)[:n]))
