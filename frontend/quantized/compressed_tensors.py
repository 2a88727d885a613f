"""Checkpoints of compressed-tensors (llm-compressor): packed integers, bytes and fp8, and two formats of fp4."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ingot.errors import CheckpointError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.frontend.quantized.layout import Layout, Settings, Source, Tensors, activations_ignored
from ingot.ir.formats.packing import unpack_bits
from ingot.ir.formats.words import unpack_words, words_for
from ingot.ir.types import bf16, f8e4m3, f16, f32, i8, i32, i64, u8
from ingot.ir.weights import FileWeight

_FLOATS = (f32, f16, bf16)
_COMPRESSED = ("compressed", None)


@dataclass(frozen=True)
class _Scheme:
    """One entry of config_groups: the layers it is for, and how their weights are quantised."""

    targets: tuple[str, ...]
    weights: Mapping[str, Any]

    def fits(self, linear: str) -> bool:
        return any(re.match(t.removeprefix("re:"), linear) if t.startswith("re:") else t in ("Linear", linear)
                   for t in self.targets)


class CompressedTensors(Layout):
    """`weight_packed` i32 with integers along a row (offset to be unsigned), or u8 with two fp4 codes; else `weight` itself in
    int8 or fp8; `weight_scale` [out, groups]; `weight_zero_point`, packed along the outputs where the weight is packed;
    `weight_shape`, `weight_g_idx`; `weight_global_scale` f32[1], what the scales of nvfp4 are divided by.
    """

    name = "compressed-tensors"
    parts = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
             "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        for key in ("sparsity_config", "transform_config"):
            extra = settings.get(key)
            if extra and extra.get("format", key) != "dense":
                raise CheckpointError(f"quantization_config: {key} is not supported", where="config.json",
                                      hint="take a checkpoint without it, or the float one it was made from")
        groups = settings.get("config_groups")
        try:
            self.schemes = [_Scheme(tuple(map(str, g["targets"])), dict(g["weights"])) for g in groups.values()]  # type: ignore[union-attr]
            active = any(g.get("input_activations") for g in groups.values())  # type: ignore[union-attr]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError("quantization_config: config_groups are not understood", where="config.json") from None
        if active:
            activations_ignored(self.name)

    def linears(self, tensors: Tensors) -> Iterator[str]:
        return (key.removesuffix(".weight_scale") for key in tensors if key.endswith(".weight_scale"))

    def read(self, linear: str, tensors: Tensors) -> CodedWeight:
        if "weight_packed" in tensors:
            packed = self.part(linear, tensors, "weight_packed", (i32, u8))
            return self._fp4(linear, tensors, packed) if packed.type.dtype == u8 else self._packed(linear, tensors, packed)
        weight = self.part(linear, tensors, "weight", (i8, f8e4m3, *_FLOATS))
        if weight.type.dtype in _FLOATS:
            raise CheckpointError(f"{linear}.weight is {weight.type} with scales beside it: it was calibrated, not compressed",
                                  where=str(weight.path), hint="save it with save_compressed=True")
        return self._bytes(linear, tensors, weight)

    def _weights(self, linear: str) -> Mapping[str, Any]:
        found = next((scheme.weights for scheme in self.schemes if scheme.fits(linear)), None)
        if found is None:
            raise CheckpointError(f"{linear} is quantised, but no group in config_groups is for it", where="config.json")
        return found

    def _packed(self, linear: str, tensors: Tensors, packed: FileWeight) -> CodedWeight:
        bits = self._weights(linear).get("num_bits")
        if bits not in (2, 3, 4, 8):
            raise CheckpointError(f"{linear} has {bits!r} bits; supported: 2, 3, 4, 8", where="config.json")
        shape = self.part(linear, tensors, "weight_shape", (i64, i32), rank=1)
        n, k = packed.type.shape[0], int(shape.materialize()[-1])
        self.shaped(linear, "weight_packed", packed, (n, words_for(k, bits)))
        scale, group, rows = self._scale(linear, tensors, n, k)
        zero: Source | None = None
        if "weight_zero_point" in tensors:
            points = self.part(linear, tensors, "weight_zero_point", (i32, i8))
            if points.type.dtype == i32:
                self.shaped(linear, "weight_zero_point", points, (words_for(n, bits), scale.type.shape[1]))
                zero = points, lambda words: unpack_words(words.T, bits, n).T
            else:
                self.shaped(linear, "weight_zero_point", points, scale.type.shape)
                zero = points, lambda codes: unsigned(codes, bits)
        g_idx = self.part(linear, tensors, "weight_g_idx", (i32, i64), rank=1) if "weight_g_idx" in tensors else None
        return self.coded(linear, (n, k), format=f"int{bits}", group=group, zero=zero, g_idx=g_idx,
                          packed=(packed, lambda words: unpack_words(words, bits, k)),
                          scale=(scale, lambda x: _spread(x, rows, n)))

    def _bytes(self, linear: str, tensors: Tensors, weight: FileWeight) -> CodedWeight:
        n, k = weight.type.shape
        scale, group, rows = self._scale(linear, tensors, n, k)
        steps: Source = scale, lambda x: _spread(x, rows, n)
        if weight.type.dtype == f8e4m3:
            return self.coded(linear, (n, k), format="fp8-e4m3", group=group, packed=(weight, np.asarray), scale=steps)
        bits = self._weights(linear).get("num_bits")
        if bits not in (4, 8):
            raise CheckpointError(f"{linear} has {bits!r} bits in bytes; supported: 4, 8", where="config.json")
        zero: Source | None = None
        if "weight_zero_point" in tensors:
            points = self.part(linear, tensors, "weight_zero_point", (i8,), rank=scale.type.rank)
            self.shaped(linear, "weight_zero_point", points, scale.type.shape)
            zero = points, lambda codes: unsigned(_spread(codes, rows, n), bits)
        return self.coded(linear, (n, k), format=f"int{bits}", group=group, zero=zero, scale=steps,
                          packed=(weight, lambda codes: unsigned(codes, bits)))

    def _fp4(self, linear: str, tensors: Tensors, packed: FileWeight) -> CodedWeight:
        n, k = packed.type.shape[0], packed.type.shape[1] * 2
        codes: Source = packed, lambda data: unpack_bits(data, 4, k).view(ml_dtypes.float4_e2m1fn)
        if "weight_global_scale" in tensors:
            scale = self.part(linear, tensors, "weight_scale", (f8e4m3,))
            self.shaped(linear, "weight_scale", scale, (n, k // 16))
            whole = self.part(linear, tensors, "weight_global_scale", (f32,), rank=1)
            self.shaped(linear, "weight_global_scale", whole, (1,))
            return self.coded(linear, (n, k), format="nvfp4", group=16, packed=codes, scale=(scale, np.asarray),
                              tensor_scale=(whole, lambda x: np.float32(1) / x[0]))
        scale = self.part(linear, tensors, "weight_scale", (u8,))
        self.shaped(linear, "weight_scale", scale, (n, k // 32))
        return self.coded(linear, (n, k), format="mxfp4", group=32, packed=codes,
                          scale=(scale, lambda data: data.view(ml_dtypes.float8_e8m0fnu)))

    def _scale(self, linear: str, tensors: Tensors, n: int, k: int) -> tuple[FileWeight, int, int]:
        """The scales of a weight [n, k], and how many inputs and outputs share one."""
        given = tensors.get("weight_scale")
        scale = self.part(linear, tensors, "weight_scale", _FLOATS, rank=given.type.rank if given is not None else 2)
        settings = self._weights(linear)
        strategy, group = settings.get("strategy"), settings.get("group_size")
        if strategy == "block":
            block = settings.get("block_structure")
            if not isinstance(block, list) or len(block) != 2 or not all(type(x) is int and x > 0 for x in block):
                raise CheckpointError(f"{linear}: block_structure is {block!r}, not two numbers", where="config.json")
            self.shaped(linear, "weight_scale", scale, (-(-n // block[0]), -(-k // block[1])))
            return scale, block[1], block[0]
        if strategy == "group":
            if type(group) is not int or group < 1:
                raise CheckpointError(f"{linear}: group_size is {group!r}", where="config.json")
            self.shaped(linear, "weight_scale", scale, (n, -(-k // group)))
            return scale, group, 1
        if strategy not in ("channel", "tensor"):
            raise CheckpointError(f"{linear}: the strategy {strategy!r} is not supported", where="config.json",
                                  hint="supported: group, channel, tensor, block")
        rows = n if strategy == "channel" else 1
        if scale.type.shape not in ((rows, 1), (rows,), () if rows == 1 else (rows, 1)):
            self.shaped(linear, "weight_scale", scale, (rows, 1))
        return scale, k, n // rows


def unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes as the unsigned ones that stand for the same numbers around the middle."""
    return (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)


def _spread(x: np.ndarray, rows: int, n: int) -> np.ndarray:
    """What blocks of `rows` outputs share, [n, groups]; x has no axis of groups where there is one group."""
    blocks = x if x.ndim == 2 else x.reshape(-1, 1)
    return blocks if rows == 1 else blocks.repeat(rows, 0)[:n]
