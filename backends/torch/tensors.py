"""Between numpy arrays, element types of the IR, and torch tensors."""

from __future__ import annotations

import numpy as np
import torch

from ingot.ir.types import DType

_TORCH: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2, "f8e8m0": torch.float8_e8m0fnu, "f4e2m1": torch.float32,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "i4": torch.int8, "i2": torch.int8,
    "u8": torch.uint8, "u4": torch.uint8, "u3": torch.uint8, "u2": torch.uint8, "u32": torch.int64, "bool": torch.bool,
}
_BITS = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16)}


def torch_dtype(dtype: DType, floats: torch.dtype | None = None) -> torch.dtype:
    """The dtype of tensors that stand for `dtype`: codes below a byte take one, u32 is held as int64.

    floats: what every float of more than 8 bits becomes instead.
    """
    if floats is not None and dtype.is_float and dtype.bits > 8:
        return floats
    return _TORCH[dtype.name]


def to_tensor(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """A tensor of `torch_dtype(dtype)` with the numbers of an array of that element type; read-only arrays are copied."""
    target = _TORCH[dtype.name]
    name = array.dtype.name
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        bits, carrier = _BITS[array.dtype.itemsize]
        return _own(array.view(bits)).view(carrier).view(target)
    if array.dtype.kind not in "fiub":
        array = array.astype(np.float32 if dtype.is_float else np.int8 if dtype.kind == "int" else np.uint8)
    elif name == "uint32":
        array = array.astype(np.int64)
    return _own(array).to(target)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor as numpy; bf16 and fp8 become float32."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu):
        tensor = tensor.float()
    return tensor.numpy()


def _own(array: np.ndarray) -> torch.Tensor:
    array = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
