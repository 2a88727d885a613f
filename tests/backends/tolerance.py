"""How far a backend may be from the float64 reference, with a reason per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingot.ir.types import DTYPES, DType


@dataclass(frozen=True)
class Tolerance:
    """Largest |got - wanted| allowed, as a part of max(1, largest |wanted|) of the tensor."""

    part: float
    reason: str


BY_DTYPE = {
    "f64": Tolerance(1e-12, "the same arithmetic in another order"),
    "f32": Tolerance(4e-6, "32 units in the last place: sums of a few hundred terms in another order"),
    "f16": Tolerance(4e-3, "4 units in the last place: every result of an op is rounded once"),
    "bf16": Tolerance(3e-2, "4 units in the last place: every result of an op is rounded once"),
}

BY_OP = {
    ("sin", "f32"): Tolerance(1e-5, "range reduction differs between libraries"),
    ("cos", "f32"): Tolerance(1e-5, "range reduction differs between libraries"),
    ("pow", "f32"): Tolerance(1e-5, "exp(y log x) in single precision against pow"),
    ("conv", "f32"): Tolerance(1e-5, "Winograd and blocked kernels sum in other orders"),
}

BY_BACKEND = {
    ("dequantize", "ort"): Tolerance(2e-2, "onnxruntime fuses the pair to MatMulNBits, whose activations are int8"),
    ("dequantize", "ort-contrib"): Tolerance(2e-2, "MatMulNBits with int8 activations"),
}


def tolerance(op: str, dtype: str, backend: str) -> Tolerance:
    """The row for an op in an element type on a backend; integers and bools must be equal."""
    if dtype in BY_DTYPE and (op, backend) in BY_BACKEND:
        return BY_BACKEND[op, backend]
    return BY_OP.get((op, dtype)) or BY_DTYPE.get(dtype, Tolerance(0.0, "integers are exact"))


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest |got - wanted| over max(1, largest |wanted|); infinite when shapes, NaNs or infinities differ."""
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(1.0, np.abs(b[finite]).max()))


def coarsest(dtypes: Sequence[DType]) -> DType:
    """The float type with the fewest digits among these, f64 when there is none."""
    order = ["bf16", "f16", "f32", "f64"]
    return DTYPES[next(name for name in [*order, "f32"] if name in {d.name for d in dtypes} or name == "f64")]
