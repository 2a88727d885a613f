"""Turning a residual stream: norms give up their weights, what writes and what reads takes the rotation on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ingot.ir.module import Builder, Func
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, Norm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.pattern import NoMatch
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight, derived
from ingot.passes.rotation.hadamard import Rotation
from ingot.passes.rotation.residual import Residual

PASS = "rotate"


def rotate_residual(func: Func, stream: Residual, rotation: Rotation) -> None:
    """Every value x of the stream becomes x R (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4, stage 1a).

    Layer norms become RMS norms: their mean is taken away where the stream is written (SliceGPT, arXiv 2401.15024,
    section 3.2). An output projection tied to the embedding stays tied: the final norm's weight g goes into a linear
    R^T diag(g) R in front of it, and is untied where means are taken away. Raises NoMatch, before anything has changed.
    """
    _Turned(func, stream, rotation).run()


class _Turned:
    def __init__(self, func: Func, stream: Residual, rotation: Rotation) -> None:
        self.func = func
        self.stream = stream
        self.rotate = rotation
        centred = [isinstance(norm, LayerNorm | SkipLayerNorm) for norm in stream.norms]
        self.centred = any(centred)
        if self.centred and (stream.readers or not all(centred)):
            raise NoMatch("only some of what reads the residual stream takes its mean away", next(iter(stream.values)))
        self.behind = [reader for readers in stream.norms.values() for reader in readers]
        self._refuse_shared()

    def run(self) -> None:
        for norm, readers in self.stream.norms.items():
            for reader in readers:
                self._read(norm, reader)
            self._plain(norm)
        for reader in self.stream.readers:
            if reader.w not in self.stream.tables:
                self._set(reader, "w", self.rotate)
        for writer in self.stream.writers:
            self._set(writer, "w", lambda w: self._written(w.T).T)
            if writer.bias is not None:
                self._set(writer, "bias", self._written)
        for table in self.stream.tables:
            self.func.module.set_weight(table, self._derived(self._written, table))

    def _written(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., width] as they enter the turned stream."""
        return self.rotate(rows - rows.mean(-1, keepdims=True) if self.centred else rows)

    def _read(self, norm: Norm, reader: Linear) -> None:
        """A linear behind a norm takes on the norm's weight and bias, and the rotation."""
        scale, shift = norm.w, getattr(norm, "bias", None)
        tied = reader.w in self.stream.tables
        if shift is not None:
            self._shift(reader, shift)
        if tied and not self.centred:
            self._in_between(reader, scale)
            return
        if tied:
            assert isinstance(reader.w, Const)
            self.func.set_operand(reader, "w", self.func.module.add_const(f"{reader.w.name}.output", reader.w.weight))
        if isinstance(scale, Const):
            self._set(reader, "w", lambda w, g: self.rotate(w * g), scale)
        else:
            self._set(reader, "w", self.rotate)

    def _shift(self, reader: Linear, shift: Value) -> None:
        assert isinstance(shift, Const)
        assert isinstance(reader.w, Const)
        given = [reader.bias] if isinstance(reader.bias, Const) else []
        weight = derived(PASS, lambda w, b, *old: w @ b + sum(old), *(c.weight for c in (reader.w, shift, *given)), exact=True,
                         type=TensorType(reader.w.type.dtype, reader.w.type.dims[:1]), key=f"{reader.w.name}.bias")
        self.func.set_operand(reader, "bias", self.func.module.add_const(f"{reader.w.name}.bias", weight))

    def _in_between(self, reader: Linear, scale: Value | None) -> None:
        """x (R^T diag(g) R) in front of a linear whose weight is turned as the table it is tied to."""
        if not isinstance(scale, Const):
            return
        b = Builder(self.func, before=reader)
        square = TensorType(scale.type.dtype, scale.type.dims * 2)
        weight = derived(PASS, lambda g: self.rotate(self.rotate(np.diag(g)).T), scale.weight, type=square, exact=True,
                         key=f"{scale.name}.rotated")
        self.func.set_operand(reader, "x", b(Linear(reader.x, b.const(f"{scale.name}.rotated", weight))))

    def _plain(self, norm: Norm) -> None:
        """The norm without weight and bias, as an RMS norm."""
        b = Builder(self.func, before=norm)
        new: Op = (RmsNorm(norm.x, None, norm.eps) if isinstance(norm, RmsNorm | LayerNorm)
                   else SkipRmsNorm(norm.x, norm.skip, None, norm.eps))
        for old, value in zip(norm.results, b.add(new).results, strict=True):
            self.func.replace(old, value)
        self.func.erase(norm)

    def _set(self, op: Linear, operand: str, fn: Callable[..., np.ndarray], *more: Const) -> None:
        const = getattr(op, operand)
        self.func.module.set_weight(const, self._derived(fn, const, *more))

    def _derived(self, fn: Callable[..., np.ndarray], const: Const, *more: Const) -> Weight:
        def wide(*arrays: np.ndarray) -> np.ndarray:
            return fn(*(np.asarray(a, np.float64) for a in arrays))

        return derived(PASS, wide, *(c.weight for c in (const, *more)), type=const.type, key=const.name, exact=True)

    def _refuse_shared(self) -> None:
        """Raises NoMatch where a weight is used in two ways, or elsewhere."""
        stream = self.stream
        writing = {c: w for w in stream.writers for c in (w.w, w.bias) if c is not None}
        reading = {reader.w: reader for reader in (*stream.readers, *self.behind)}
        for const in (*writing, *reading, *stream.tables):
            assert isinstance(const, Const)
            tied = const in stream.tables
            for user in const.users:
                known = (user is writing.get(const) or user is reading.get(const)
                         or (tied and any(v in stream.values for v in user.results)))
                if not known or (const in writing and (tied or (const in reading and user is not reading[const]))):
                    raise NoMatch(f"@{const.name} is used in several ways", const)
        for norm in stream.norms:
            for value in (norm.w, getattr(norm, "bias", None)):
                if value is not None and not isinstance(value, Const):
                    raise NoMatch("the weight of a norm is computed in the graph", value)
