"""How the steps of a weight are stored: as floats, powers of two, 8-bit floats under one scale, or coded once more.

A step is the number a group's grid is multiplied by. Stored, it is up to three operands of `dequantize`, and `steps` is
their meaning: `(scale or map[scale]) * tensor_scale + offset`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ingot.ir.formats.packing import grouped
from ingot.ir.types import DType, TensorType, f8e4m3, f8e8m0, f32, u8

Parts = dict[str, np.ndarray]

SUPERBLOCK = 256
"""Consecutive steps (row-major over the whole weight) that share a second-level scale."""


class Scaling:
    """Steps as f32: nothing is lost. dtype: of the operand `scale`; bits: stored per step, second levels included."""

    dtype: DType = f32
    bits: float = 32

    def tensor_scale(self, w: np.ndarray, peak: float) -> np.ndarray | None:
        """The scale f32[] of all steps of a weight whose codes reach `peak`; None where there is none."""
        return None

    def cover(self, reach: np.ndarray, peak: float, tensor_scale: np.ndarray | None) -> np.ndarray:
        """The storable steps (f32) under which a code of magnitude `peak` comes to lie at `reach` (f32), or near it."""
        return (reach / np.float32(peak)).astype(np.float32)

    def types(self, rows: int, groups: int) -> dict[str, TensorType]:
        """Operand types for steps [rows, groups]."""
        return {"scale": TensorType(self.dtype, (rows, groups))}

    def stored(self, step: np.ndarray, tensor_scale: np.ndarray | None) -> Parts:
        """The operands, by name, for steps f32[rows, groups]."""
        return {"scale": step}


class PowersOfTwo(Scaling):
    """Steps as e8m0: 2^(floor(log2 amax) - emax), emax that of the element type (OCP Microscaling v1.0, section 6.3).

    The greatest element of a group may lie beyond the greatest code by up to a third, and is clipped.
    """

    dtype = f8e8m0
    bits = 8

    def cover(self, reach: np.ndarray, peak: float, tensor_scale: np.ndarray | None) -> np.ndarray:
        # frexp gives a mantissa in [1/2, 1), so its exponent is floor(log2) + 1, exactly.
        exponent = np.frexp(reach)[1] - np.frexp(np.float32(peak))[1]
        step: np.ndarray = np.ldexp(np.float32(1), np.clip(np.where(reach > 0, exponent, -127), -127, 127))
        return step

    def stored(self, step: np.ndarray, tensor_scale: np.ndarray | None) -> Parts:
        return {"scale": step.astype(f8e8m0.numpy)}


class UnderTensorScale(Scaling):
    """Steps as e4m3 times one f32 scale of the weight, amax / (peak * 448): NVFP4's two levels.

    The layout of ModelOpt (`weight_scale`, `weight_scale_2`); compressed-tensors stores the scale's reciprocal.
    """

    dtype = f8e4m3
    bits = 8
    _GREATEST, _LEAST = 448.0, 2.0 ** -9

    def tensor_scale(self, w: np.ndarray, peak: float) -> np.ndarray:
        greatest = np.abs(w).max(initial=0).astype(np.float32)
        return np.asarray(np.maximum(greatest / np.float32(peak * self._GREATEST), np.finfo(np.float32).tiny))

    def cover(self, reach: np.ndarray, peak: float, tensor_scale: np.ndarray | None) -> np.ndarray:
        assert tensor_scale is not None, "steps under a tensor scale need it: see Format.tensor_scale"
        wanted = reach / np.float32(peak) / tensor_scale
        # A group far below the greatest one keeps the smallest step instead of vanishing.
        near = np.where(reach > 0, np.clip(wanted, self._LEAST, self._GREATEST), 0)
        step: np.ndarray = (near.astype(f8e4m3.numpy).astype(np.float32) * tensor_scale).astype(np.float32)
        return step

    def types(self, rows: int, groups: int) -> dict[str, TensorType]:
        return {**super().types(rows, groups), "tensor_scale": TensorType(f32, ())}

    def stored(self, step: np.ndarray, tensor_scale: np.ndarray | None) -> Parts:
        assert tensor_scale is not None
        return {"scale": (step / tensor_scale).astype(f8e4m3.numpy), "tensor_scale": np.asarray(tensor_scale, np.float32)}


class DoubleQuantised(Scaling):
    """Steps less their mean, as 8-bit codes with a scale per 256 (QLoRA, arXiv 2305.14314, section 3, double quantization).

    The codes are those of bitsandbytes: its dynamic map, blocks over the weight in row-major order.
    """

    dtype = u8
    bits = 8 + 32 / SUPERBLOCK

    def types(self, rows: int, groups: int) -> dict[str, TensorType]:
        return {**super().types(rows, groups), "tensor_scale": TensorType(f32, (-(-rows * groups // SUPERBLOCK),)),
                "offset": TensorType(f32, ())}

    def stored(self, step: np.ndarray, tensor_scale: np.ndarray | None) -> Parts:
        offset = step.mean(dtype=np.float64).astype(np.float32)
        blocks = grouped(step.reshape(-1) - offset, SUPERBLOCK)
        scale = np.abs(blocks).max(-1)
        middles = (dynamic_map()[1:] + dynamic_map()[:-1]) / 2
        codes = np.searchsorted(middles, blocks / np.where(scale == 0, 1, scale)[:, None]).astype(np.uint8)
        return {"scale": codes.reshape(-1)[:step.size].reshape(step.shape), "tensor_scale": scale, "offset": np.asarray(offset)}


@lru_cache(maxsize=1)
def dynamic_map() -> np.ndarray:
    """What the 8-bit codes of steps stand for, f32[256] ascending in [-1, 1]: dynamic tree quantization.

    A sign, a decimal exponent from -6 to 0, and as many steps in [0.1, 1] as bits are left: 1, 2, 4, ..., 64
    (Dettmers, 8-Bit Approximations for Parallelism in Deep Learning, arXiv 1511.04561); then 0 and 1.
    """
    positive: list[float] = []
    for exponent in range(7):
        bounds = np.linspace(0.1, 1, 2 ** exponent + 1)
        positive += (10.0 ** (exponent - 6) * (bounds[1:] + bounds[:-1]) / 2).tolist()
    table = np.array(sorted([*positive, *(-x for x in positive), 0.0, 1.0]), np.float32)
    table.flags.writeable = False
    return table


def steps(scale: np.ndarray, tensor_scale: np.ndarray | None = None, offset: np.ndarray | None = None) -> np.ndarray:
    """The steps that stored operands stand for, in the shape of `scale`; f32, or f64 where an operand is.

    scale: floats, or u8 codes of `dynamic_map`. tensor_scale: one factor, or one per 256 steps in row-major order.
    offset: added to each.
    """
    given = [x for x in (scale, tensor_scale, offset) if x is not None]
    wide: Any = np.float64 if any(x.dtype == np.float64 for x in given) else np.float32
    step = (dynamic_map()[scale] if scale.dtype == np.uint8 else scale).astype(wide)
    if tensor_scale is not None:
        factor = np.asarray(tensor_scale, wide)
        step = step * (np.repeat(factor, SUPERBLOCK)[:step.size].reshape(step.shape) if factor.ndim else factor)
    return step if offset is None else step + np.asarray(offset, wide)


FLOAT, E8M0, TWO_LEVEL, DOUBLE = Scaling(), PowersOfTwo(), UnderTensorScale(), DoubleQuantised()
