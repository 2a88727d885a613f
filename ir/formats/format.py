"""What a quantised weight format is: a grid of values, and the steps by which groups of a weight scale it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from ingot.errors import IRError
from ingot.ir.formats.packing import grouped, pack_bits, unpack_bits
from ingot.ir.formats.scaling import FLOAT, Scaling, steps
from ingot.ir.types import DType, TensorType

CLIPS: tuple[float, ...] = tuple(round(1 - i / 40, 3) for i in range(17))
"""Parts of a group's greatest magnitude, from all of it down to 0.6, that a search for the best step tries."""


@dataclass(frozen=True)
class Scales:
    """The steps of a weight as they are stored.

    step: f32[rows, groups], what decoding multiplies by; one row where the whole tensor shares a step. zero: zero points
    u8 of the same shape, or None. parts: the operands of `dequantize` besides the codes, by name, in element types of the IR.
    """

    step: np.ndarray
    zero: np.ndarray | None
    parts: dict[str, np.ndarray]


@dataclass(frozen=True)
class Coded:
    """A weight in a format. codes: [n, k] in `format.code.numpy`; group: elements of a row that share a step."""

    format: Format
    group: int
    codes: np.ndarray
    scales: Scales

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """All operands of `dequantize` by name, in the order of `Format.types`."""
        return {"packed": self.codes, **self.scales.parts}

    def decoded(self) -> np.ndarray:
        """The weight that the codes stand for, f32[n, k]."""
        return dequantized(self.format, self.group, self.codes, self.scales.step, self.scales.zero)


@dataclass(frozen=True)
class Format(ABC):
    """One quantised format: the interface described in `ingot.ir.formats`, and what it costs.

    code: element type of the packed tensor. group: elements that share a step unless told otherwise, groups: those it may
    have; 0 is a whole row. scaling: how steps are stored. ratios: what a search for the best step tries (see `parameters`).
    worst: the greatest error of an element by `parameters` and `encode`, as a part of its group's greatest magnitude
    (of the range covered, where there are zero points).
    """

    name: str
    code: DType
    worst: float
    group: int = 32
    groups: tuple[int, ...] = (0, 16, 32, 64, 128, 256)
    scaling: Scaling = field(default=FLOAT, repr=False)
    ratios: tuple[float, ...] = field(default=CLIPS, repr=False)
    has_zero_points = False

    # --- what an algorithm that chooses codes calls -----------------------------------------------------------------

    def tensor_scale(self, w: np.ndarray) -> np.ndarray | None:
        """The second-level scale f32[] of a whole weight, for `parameters` and `settle`; None where there is none."""
        return self.scaling.tensor_scale(w, self.peak)

    @abstractmethod
    def parameters(self, w: np.ndarray, *, symmetric: bool = False, tensor_scale: np.ndarray | None = None,
                   ratio: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:
        """Step f32[...] and zero point u8[...] (None without) for groups w f32[..., group].

        The step can be stored as it is (nf4's is rounded once more by `settle`). symmetric: no zero points; formats other
        than integers never have them. ratio: the part of the greatest magnitude to cover: less clips the outermost elements
        for finer steps. Raises IRError when an element is NaN or infinite.
        """

    @abstractmethod
    def encode(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """The nearest codes of w, in `code.numpy`; w, step and zero broadcast."""

    @abstractmethod
    def decode(self, codes: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """What codes stand for, in the float type of `step`; codes, step and zero broadcast."""

    def nearest_values(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """What the nearest codes of w stand for: `decode(encode(w))`, a new array."""
        return self.decode(self.encode(w, step, zero), step, zero)

    def settle(self, step: np.ndarray, zero: np.ndarray | None = None, tensor_scale: np.ndarray | None = None) -> Scales:
        """The steps [rows, groups] and zero points chosen, as they are stored. tensor_scale: the one `parameters` was given."""
        parts = self.scaling.stored(step.astype(np.float32, copy=False), tensor_scale)
        loaded = steps(*(parts.get(name) for name in ("scale", "tensor_scale", "offset")))  # type: ignore[arg-type]
        if zero is None:
            return Scales(loaded, None, parts)
        return Scales(loaded, zero, {"scale": parts.pop("scale"), "zero": zero.astype(self.code.numpy), **parts})

    # --- what it is and costs -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def peak(self) -> float:
        """The greatest magnitude a code stands for under step 1."""

    @abstractmethod
    def bound(self, w: np.ndarray, step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """The greatest possible |decode(encode(w)) - w| of each element, f64: half the gap around it, and what is clipped."""

    @property
    def bits(self) -> int:
        """Of one code."""
        return self.code.bits

    @property
    def levels(self) -> int:
        return 1 << self.bits

    def table(self) -> np.ndarray:
        """What every code stands for under step 1 and no zero point, f64[levels], by bit pattern; NaN where it is none."""
        codes = np.arange(self.levels, dtype=np.uint8)
        return self.decode(codes.view(self.code.numpy) if self.code.is_float else codes, np.ones(1), None)

    def weight_bits(self, group: int, *, symmetric: bool = True) -> float:
        """Bits per weight with scales and zero points, for `group` weights under one step (k of them for a whole row)."""
        zero = self.bits if self.has_zero_points and not symmetric else 0
        return self.bits + (self.scaling.bits + zero) / group

    def types(self, shape: tuple[int, int], group: int, *, symmetric: bool = True,
              per_tensor: bool = False) -> dict[str, TensorType]:
        """Types of `dequantize`'s operands for a weight [n, k] with steps for `group` elements of a row (or one for all)."""
        rows, groups = (1, 1) if per_tensor else (shape[0], -(-shape[1] // group))
        scale, *more = self.scaling.types(rows, groups).items()
        zero = {} if symmetric or not self.has_zero_points else {"zero": TensorType(self.code, (rows, groups))}
        return {"packed": TensorType(self.code, shape), **dict([scale]), **zero, **dict(more)}

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Codes [..., k] as bytes [..., ceil(k * bits / 8)], the first code in the lowest bits, rows byte-aligned."""
        return pack_bits(np.ascontiguousarray(codes).view(np.uint8) & np.uint8(self.levels - 1), self.bits)

    def unpack(self, packed: np.ndarray, k: int) -> np.ndarray:
        """The codes [..., k], in `code.numpy`, of `pack`."""
        codes = np.ascontiguousarray(unpack_bits(packed, self.bits, k))
        return codes.view(self.code.numpy) if self.code.is_float else codes.astype(self.code.numpy)


def dequantized(fmt: Format, group: int, codes: np.ndarray, step: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """Codes [..., k] under step and zero [..., groups] (leading axes may be 1), in the float type of `step`."""
    parts = grouped(codes, group)
    values = fmt.decode(parts, step[..., None], None if zero is None else zero[..., None])
    return values.reshape(*codes.shape[:-1], -1)[..., :codes.shape[-1]]


def reach(w: np.ndarray) -> np.ndarray:
    """The greatest magnitude in the last axis, f32. Raises IRError when an element is NaN or infinite."""
    return finite(np.abs(w).max(-1).astype(np.float32, copy=False))


def finite(x: np.ndarray) -> np.ndarray:
    """`x` itself. Raises IRError when an element is NaN or infinite."""
    if not np.isfinite(x).all():
        raise IRError("a weight is NaN or infinite, which no format holds", hint="the checkpoint is broken")
    return x


def divided(w: np.ndarray, step: np.ndarray) -> np.ndarray:
    """w / step; w itself, which is then nearly or wholly zero, where the step is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        quotient: np.ndarray = w / np.where(step == 0, step.dtype.type(1), step)
    return quotient
