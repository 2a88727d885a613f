"""The layout of compressed-tensors, as llm-compressor writes it and vLLM, SGLang and transformers read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingot.backends.hf.layout import Layout, Matrix, Parts, narrowed
from ingot.errors import ArtifactError
from ingot.ir.formats.words import pack_words, words_for
from ingot.ir.types import DType, TensorType, f8e4m3, f32, i32, i64, u8

_HELD: Mapping[str, str] = {"int2": "pack-quantized", "int3": "pack-quantized", "int4": "pack-quantized",
                            "int8": "pack-quantized", "nvfp4": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized",
                            "fp8-e4m3": "float-quantized"}
"""What its configuration calls the layout of each format."""


class CompressedTensors(Layout):
    """Integers as weight_packed i32[out, in * bits / 32], weight_scale [out, groups], weight_zero_point packed along the
    outputs, weight_shape; fp4 as weight_packed u8[out, in / 2] with weight_scale, and weight_global_scale f32[1], the
    reciprocal of the tensor's scale; fp8 as weight itself with weight_scale.
    """

    name = "compressed-tensors"

    def check(self, m: Matrix) -> None:
        if m.format.name not in _HELD:
            raise m.fail(f"compressed-tensors does not hold {m.format.name}", hint=f"it holds {', '.join(_HELD)}")
        if m.shape[1] % m.group:
            raise m.fail(f"compressed-tensors holds whole groups, and {m.shape[1]} inputs are no multiple of {m.group}",
                         hint="take another group: quantize{group=...}")

    def scale(self, m: Matrix) -> DType:
        return m.format.scaling.dtype if m.format.scaling.dtype != f32 else m.floats

    def types(self, m: Matrix) -> dict[str, TensorType]:
        (n, k), bits = m.shape, m.format.bits
        scale = {"weight_scale": TensorType(self.scale(m), (n, m.groups))}
        if m.format.name == "nvfp4":
            return {"weight_packed": TensorType(u8, (n, k // 2)), **scale, "weight_global_scale": TensorType(f32, (1,))}
        if m.format.name == "mxfp4":
            return {"weight_packed": TensorType(u8, (n, k // 2)), "weight_scale": TensorType(u8, (n, m.groups))}
        if not m.integers:
            return {"weight": TensorType(f8e4m3, (n, k)), **scale}
        zero = {} if m.symmetric else {"weight_zero_point": TensorType(i32, (words_for(n, bits), m.groups))}
        return {"weight_packed": TensorType(i32, (n, words_for(k, bits))), **scale, **zero, "weight_shape": TensorType(i64, (2,))}

    def tensors(self, m: Matrix, parts: Parts) -> dict[str, np.ndarray]:
        codes, bits = parts["packed"], m.format.bits
        if m.format.name == "nvfp4":
            return {"weight_packed": m.format.pack(codes), "weight_scale": parts["scale"],
                    "weight_global_scale": reciprocal(parts["tensor_scale"])}
        if m.format.name == "mxfp4":
            return {"weight_packed": m.format.pack(codes), "weight_scale": parts["scale"].view(np.uint8)}
        scale = narrowed(m, parts["scale"], self.scale(m))
        if not m.integers:
            return {"weight": codes, "weight_scale": scale}
        zero = {"weight_zero_point": pack_words(parts["zero"].astype(np.uint8).T, bits).T} if "zero" in parts else {}
        return {"weight_packed": pack_words(codes.astype(np.uint8), bits), "weight_scale": scale, **zero,
                "weight_shape": np.array(m.shape, np.int64)}

    def settings(self, matrices: Sequence[Matrix], floats: Sequence[str]) -> dict[str, Any]:
        groups: dict[str, dict[str, Any]] = {}
        members: dict[str, list[str]] = {}
        for m in matrices:
            weights = _arguments(m)
            key = repr(weights)
            groups.setdefault(key, {"targets": [], "weights": weights, "input_activations": None, "output_activations": None,
                                    "format": _HELD[m.format.name]})
            members.setdefault(key, []).append(m.linear)
        for key, group in groups.items():
            group["targets"] = ["Linear"] if len(groups) == 1 else members[key]
        formats = {group["format"] for group in groups.values()}
        return {"quant_method": self.name, "format": formats.pop() if len(formats) == 1 else "mixed-precision",
                "quantization_status": "compressed", "global_compression_ratio": None, "kv_cache_scheme": None,
                "ignore": list(floats), "config_groups": {f"group_{i}": group for i, group in enumerate(groups.values())}}


def _arguments(m: Matrix) -> dict[str, Any]:
    """The `weights` of a group: QuantizationArgs of compressed-tensors."""
    given: dict[str, Any] = {"num_bits": m.format.bits, "type": "int" if m.integers else "float", "symmetric": m.symmetric,
                             "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None}
    if m.format.name == "nvfp4":
        return given | {"strategy": "tensor_group", "group_size": m.group, "scale_dtype": "torch.float8_e4m3fn"}
    if m.format.name == "mxfp4":
        return given | {"strategy": "group", "group_size": m.group, "scale_dtype": "torch.uint8"}
    return given | ({"strategy": "channel", "group_size": None} if m.groups == 1 else
                    {"strategy": "group", "group_size": m.group})


def reciprocal(scale: np.ndarray) -> np.ndarray:
    """f32[1] whose reciprocal is nearest to f32[]: `scale` itself where there is such a number.

    Raises ArtifactError when it is none.
    """
    with np.errstate(over="ignore", divide="ignore"):
        first = np.float32(1) / np.float32(scale)
        near = np.array([first, np.nextafter(first, np.float32(0)), np.nextafter(first, np.float32(np.inf))], np.float32)
        wrong = np.abs((np.float32(1) / near).astype(np.float64) - np.float64(scale))
    if not np.isfinite(first) or first == 0:
        raise ArtifactError(f"the scale {float(scale)} of a tensor has no reciprocal in f32")
    nearest: np.ndarray = near[np.nanargmin(wrong)].reshape(1)
    return nearest
