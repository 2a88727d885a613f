"""What a layout of quantised weights in a checkpoint is, and the checks that all of them share."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ingot.errors import CheckpointError
from ingot.frontend.quantized.coded import CodedWeight, order_of
from ingot.ir.formats import format_named
from ingot.ir.types import DType, TensorType, f32
from ingot.ir.weights import DerivedWeight, FileWeight, Weight, call

Settings = Mapping[str, Any]
"""The quantization_config of config.json."""
Tensors = Mapping[str, FileWeight]
Source = tuple[FileWeight, Callable[[np.ndarray], np.ndarray]]
"""A stored tensor, and the operand of `dequantize` from its array."""


class Layout(ABC):
    """One quant_method: which tensors of a checkpoint are a quantised linear, and what they mean.

    name: as origins in dumps say it. parts: what follows the linear's name in the keys of its tensors, instead of `weight`.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, settings: Settings) -> None:
        """Raises CheckpointError for settings that are not understood."""
        self.settings = settings

    @abstractmethod
    def linears(self, tensors: Tensors) -> Iterator[str]:
        """The names of the quantised linears in a checkpoint, without `.weight`."""

    @abstractmethod
    def read(self, linear: str, tensors: Tensors) -> CodedWeight:
        """The weight of a quantised linear. tensors: its own, by part. Raises CheckpointError when they do not fit."""

    # --- for readers ------------------------------------------------------------------------------------------------

    def number(self, key: str, *, among: tuple[int, ...] | None = None, default: int | None = None) -> int:
        """An integer setting. Raises CheckpointError when it is none, or none of `among`."""
        value = self.settings.get(key, default)
        if type(value) is not int or (among is not None and value not in among):
            some = f"; supported: {', '.join(map(str, among))}" if among else ""
            raise CheckpointError(f"quantization_config: {key} is {value!r}{some}", where="config.json")
        return value

    def part(self, linear: str, tensors: Tensors, name: str, dtype: tuple[DType, ...], rank: int = 2) -> FileWeight:
        """One tensor of a linear. Raises CheckpointError when it is missing, or of another type or rank."""
        found = tensors.get(name)
        if found is None:
            raise CheckpointError(f"{linear}.{name} is missing", hint="the checkpoint is incomplete, or config.json of another")
        if found.type.dtype not in dtype or found.type.rank != rank:
            raise CheckpointError(f"{linear}.{name} is {found.type}; {self.name} has {' or '.join(map(str, dtype))} with "
                                  f"{rank} axes", where=str(found.path))
        return found

    def shaped(self, linear: str, name: str, found: FileWeight, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError unless a tensor has this shape."""
        if found.type.shape != shape:
            raise CheckpointError(f"{linear}.{name} is {list(found.type.shape)}, the others ask for {list(shape)}",
                                  where=str(found.path), hint="bits or group_size in config.json are of another model, "
                                                              "or the file is damaged")

    def coded(self, linear: str, shape: tuple[int, int], *, format: str, group: int, packed: Source, scale: Source,
              zero: Source | None = None, tensor_scale: Source | None = None, g_idx: FileWeight | None = None,
              per_tensor: bool = False) -> CodedWeight:
        """A weight f32[out, in], from the tensors that hold the operands of its `dequantize`.

        group: inputs that share a scale. g_idx: the group of each input, where that is stored.
        """
        order = None if g_idx is None else order_of(g_idx.materialize(), group, where=f"{g_idx.path}: {g_idx.key}")
        key = f"{linear}.weight" if order is None else f"{linear}.weight.ordered"
        types = format_named(format).types(shape, group, symmetric=zero is None, per_tensor=per_tensor)
        sources = {"packed": packed, "scale": scale, "zero": zero, "tensor_scale": tensor_scale}
        parts: dict[str, Weight] = {
            name: DerivedWeight(types[name], _Decoded(source[1], types[name].dtype, order if name == "packed" else None),
                                (source[0],), call(self.name, file=source[0].path.name, key=key, part=name))
            for name, source in sources.items() if source is not None}
        return CodedWeight(packed[0].path, f"{linear}.weight", TensorType(f32, shape), self.name, parts, format, group, order)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """An operand of `dequantize` from a stored tensor: its columns in `order`, in the operand's element type."""

    fn: Callable[[np.ndarray], np.ndarray]
    dtype: DType
    order: np.ndarray | None

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        array = self.fn(stored)
        found = (array if self.order is None else array[:, self.order]).astype(self.dtype.numpy, copy=False)
        return np.require(found, requirements="C")


def activations_ignored(name: str) -> None:
    """Tells that only the weights of a checkpoint are taken as quantised."""
    warnings.warn(f"{name} asks for quantised activations as well; here they stay floats", stacklevel=2)
