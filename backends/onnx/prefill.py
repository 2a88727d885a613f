"""Weights that a graph needs in a larger form than they are stored in: a plan for a file that the runtime makes at load."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from ingot.backends.onnx.made_at_load import Int8Rows, LookedUp
from ingot.backends.onnx.weights import WeightFile, external
from ingot.ir.weights import Weight

PREFILL_WEIGHTS = "prefill.bin"
"""The file's name; it lies in a folder of the runtime's choice, never in the artifact."""

_PAGE = 4096


class PrefillWeights:
    """Lays out the file: tensors copied from the artifact's weights, and others made from packed ones.

    Tensors start on pages, so that the file can be mapped into memory piece by piece.
    """

    def __init__(self, weights: WeightFile) -> None:
        """weights: the artifact's, to which what is missing there is added."""
        self._weights = weights
        self._end = 0
        self._entries: dict[str | LookedUp, dict[str, Any]] = {}

    def plan(self) -> tuple[dict[str, Any], ...]:
        """What to write where, with spans as [first byte, bytes]: {offset, copy}, or what `LookedUp.entry` says."""
        return tuple(self._entries.values())

    def add(self, name: str, weight: Weight) -> TensorProto:
        """The initializer `name` of the graph."""
        if isinstance(weight, Int8Rows):
            return self._rounded(name, weight)
        if isinstance(weight, LookedUp):
            if name not in self._entries:
                self._entries[name] = weight.entry(self._place(weight.nbytes), self._span)
            return external(name, weight.type, PREFILL_WEIGHTS, self._entries[name]["offset"], weight.nbytes)
        proto = self._weights.add(name, weight)
        if proto.data_location != TensorProto.EXTERNAL:
            return proto
        if name not in self._entries:
            span = self._span(name, weight)
            self._entries[name] = {"offset": self._place(span[1]), "copy": span}
        return external(name, weight.type, PREFILL_WEIGHTS, self._entries[name]["offset"], weight.nbytes)

    def _rounded(self, name: str, weight: Int8Rows) -> TensorProto:
        source = weight.source
        if source not in self._entries:
            k, n = source.type.shape
            self._entries[source] = {**source.entry(self._place(k * n), self._span), "scale_offset": self._place(4 * n)}
        part = "offset" if weight.type.rank == 2 else "scale_offset"
        return external(name, weight.type, PREFILL_WEIGHTS, self._entries[source][part], weight.nbytes)

    def _span(self, name: str, weight: Weight) -> list[int]:
        """Where a tensor lies in the artifact's weights, to which it is added when it is not there."""
        stored = self._weights.store(name, weight)
        return [stored.offset, stored.length]

    def _place(self, length: int) -> int:
        start = self._end
        self._end = -(-(start + length) // _PAGE) * _PAGE
        return start
