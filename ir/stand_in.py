"""Numbers for weights that are known by type and origin only, so that what a dump describes can be run."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ingot.ir.module import Module
from ingot.ir.types import f8e8m0
from ingot.ir.weights import UnknownWeight


@dataclass(frozen=True)
class StandIn(UnknownWeight):
    """Random numbers in place of a weight, the same for the same origin and type.

    Floats are normal (powers of two, which have no sign, their magnitudes), scaled by the last axis so that a product with them
    keeps its size; integers cover what they can hold, up to a hundred.
    """

    def materialize(self) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(f"{self.source} {self.type}".encode()))
        shape, dtype = self.type.shape, self.type.dtype
        if dtype.is_float:
            scale = 1 / np.sqrt(max(shape[-1], 1)) if len(shape) > 1 else 1.0
            numbers = rng.standard_normal(shape, np.float32) * np.float32(scale)
            return (np.abs(numbers) if dtype == f8e8m0 else numbers).astype(dtype.numpy)
        below = 2 if dtype.kind == "bool" else min(1 << (dtype.bits - (dtype.kind == "int")), 100)
        return rng.integers(0, below, size=shape).astype(dtype.numpy)


def stand_in(module: Module) -> int:
    """Give every weight of a module without numbers random ones; returns how many there were."""
    unknown = [c for c in module.consts.values() if type(c.weight) is UnknownWeight]
    for const in unknown:
        const.weight = StandIn(const.type, const.weight.origin)
    return len(unknown)
