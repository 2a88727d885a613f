"""What a layout of quantised weights is: the tensors that stand for a weight, and the settings that say how to read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ingot.errors import ArtifactError
from ingot.ir.formats import Format
from ingot.ir.types import DType, TensorType

Parts = Mapping[str, np.ndarray]
"""The operands of a `dequantize`: packed [out, in] in the format's codes, scale and zero [out, groups], tensor_scale []."""


@dataclass(frozen=True)
class Matrix:
    """A quantised weight of a linear.

    linear: the name of the layer. shape: (out, in). group: inputs that share a scale. symmetric: it has no zero points.
    floats: the element type of the model's other weights.
    """

    linear: str
    format: Format
    shape: tuple[int, int]
    group: int
    symmetric: bool
    floats: DType

    @property
    def groups(self) -> int:
        return -(-self.shape[1] // self.group)

    @property
    def integers(self) -> bool:
        return self.format.has_zero_points

    @property
    def group_size(self) -> int:
        """As settings say it: -1 for a whole row."""
        return -1 if self.groups == 1 else self.group

    def fail(self, message: str, hint: str | None = None) -> ArtifactError:
        return ArtifactError(message, where=f"{self.linear}.weight", hint=hint)


class Layout(ABC):
    """One way to store quantised weights."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, m: Matrix) -> None:
        """Raises ArtifactError for a weight that this layout does not hold."""

    @abstractmethod
    def scale(self, m: Matrix) -> DType:
        """The element type in which the scales of a weight are stored."""

    @abstractmethod
    def types(self, m: Matrix) -> dict[str, TensorType]:
        """The tensors of a weight, by what follows the linear's name in their keys."""

    @abstractmethod
    def tensors(self, m: Matrix, parts: Parts) -> dict[str, np.ndarray]:
        """Their numbers. Raises ArtifactError for numbers that the layout does not hold."""

    @abstractmethod
    def settings(self, matrices: Sequence[Matrix], floats: Sequence[str]) -> dict[str, Any]:
        """The quantization_config for quantised weights. floats: the other linears, by name. Raises ArtifactError."""


def alike(layout: Layout, matrices: Sequence[Matrix]) -> Matrix:
    """The first of several weights. Raises ArtifactError when they differ in bits or groups, which one setting must cover."""
    first = matrices[0]
    for m in matrices[1:]:
        if (m.format, m.group_size) != (first.format, first.group_size):
            raise m.fail(f"{layout.name} has one number of bits and one group size for all weights; this one is {m.format.name} "
                         f"in groups of {m.group_size}, {first.linear} {first.format.name} in groups of {first.group_size}",
                         hint="use --layout compressed-tensors, or quantise all weights alike")
    return first


def narrowed(m: Matrix, scale: np.ndarray, dtype: DType) -> np.ndarray:
    """Scales in a narrower float type. Raises ArtifactError when one becomes infinite or zero."""
    with np.errstate(over="ignore"):
        found = scale.astype(dtype.numpy)
    wide = found.astype(np.float32)
    if not np.isfinite(wide).all() or ((wide == 0) & (scale != 0)).any():
        raise m.fail(f"its scales do not fit {dtype}", hint="use --layout compressed-tensors with f32")
    return found
