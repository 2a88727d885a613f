"""The weights of the graph for many rows: a plan for a file that the runtime makes when it loads that graph."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from ingot.backends.onnx.contrib_int8 import Int8Recipe, MadeAtLoad
from ingot.backends.onnx.weights import WeightFile, external
from ingot.ir.weights import Weight

PREFILL_WEIGHTS = "prefill.bin"
"""The file's name; it lies in a folder of the runtime's choice, never in the artifact."""

_PAGE = 4096


class PrefillWeights:
    """Lays out the file: tensors copied from the artifact's weights, and int8 weights made from packed ones.

    Tensors start on pages, so that the file can be mapped into memory piece by piece.
    """

    def __init__(self, weights: WeightFile) -> None:
        """weights: the artifact's, which already has the packed tensors."""
        self._weights = weights
        self._end = 0
        self._made: dict[Int8Recipe, dict[str, Any]] = {}
        self._copied: dict[str, Any] = {}

    def plan(self) -> tuple[dict[str, Any], ...]:
        """What to write where: {offset, copy} or {offset, scale_offset, packed, ...}, with spans as [first byte, bytes]."""
        return (*self._copied.values(), *self._made.values())

    def add(self, name: str, weight: Weight) -> TensorProto:
        """The initializer `name` of the graph."""
        if isinstance(weight, MadeAtLoad):
            return self._make(name, weight)
        proto = self._weights.add(name, weight)
        if proto.data_location != TensorProto.EXTERNAL:
            return proto
        stored = self._weights.store(name, weight)
        if name not in self._copied:
            self._copied[name] = {"offset": self._place(stored.length), "copy": [stored.offset, stored.length]}
        return external(name, weight.type, PREFILL_WEIGHTS, self._copied[name]["offset"], stored.length)

    def _make(self, name: str, weight: MadeAtLoad) -> TensorProto:
        recipe = weight.recipe
        if recipe not in self._made:
            spans = {key: self._span(getattr(recipe, key)) for key in ("packed", "group_scale", "zero")}
            self._made[recipe] = {"offset": self._place(recipe.k * recipe.n), "scale_offset": self._place(4 * recipe.n), **spans,
                                  "bits": recipe.bits, "group": recipe.group, "k": recipe.k, "n": recipe.n}
        part = "offset" if weight.type.rank == 2 else "scale_offset"
        return external(name, weight.type, PREFILL_WEIGHTS, self._made[recipe][part], weight.nbytes)

    def _span(self, name: str | None) -> list[int] | None:
        """Where a stored tensor lies in the artifact's weights."""
        if name is None:
            return None
        stored = self._weights.tensors[name]
        return [stored.offset, stored.length]

    def _place(self, length: int) -> int:
        start = self._end
        self._end = -(-(start + length) // _PAGE) * _PAGE
        return start
