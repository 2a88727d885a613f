"""4-bit codes packed two to a byte, as ONNX Runtime's attention keeps them: the even one low, each with 8 added."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """u8[..., n] of codes [..., 2 n] from -8 to 7."""
    low, high = (codes[..., first::2].astype(np.int8) + 8 for first in (0, 1))
    return (low | high << 4).astype(np.uint8)


def unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes i8[..., 2 n] of u8[..., n]."""
    return (np.stack((packed & 15, packed >> 4), -1).astype(np.int8) - 8).reshape(*packed.shape[:-1], -1)
