"""torch tensors and numpy arrays on the same memory, with the element types numpy lacks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from ingot.frontend.aten.registry import TORCH_DTYPES
from ingot.ir.types import TensorType
from ingot.ir.weights import ArrayWeight, UnknownWeight, Weight, call

_AS_BYTES = {torch.bfloat16: (torch.int16, ml_dtypes.bfloat16), torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
             torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2)}


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A numpy view of a tensor on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _AS_BYTES:
        plain, dtype = _AS_BYTES[tensor.dtype]
        return tensor.view(plain).numpy().view(dtype)
    array: np.ndarray = tensor.numpy()
    return array


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor of an array, copied (the array may be a read-only memory map)."""
    array = np.array(array)
    for dtype, (plain, narrow) in _AS_BYTES.items():
        if array.dtype == narrow:
            return torch.from_numpy(array.view(np.int16 if plain == torch.int16 else np.uint8)).view(dtype)
    return torch.from_numpy(array)


def held(name: str, tensor: torch.Tensor) -> Weight:
    """The handle of a tensor in memory; on the meta device, of numbers nobody has."""
    if tensor.device.type == "meta":
        return UnknownWeight(TensorType(TORCH_DTYPES[tensor.dtype], tuple(tensor.shape)), call("meta", key=name))
    return ArrayWeight(array_of(tensor))
