"""quantize-inputs: what linears on quantised weights read is rounded to 8 bits too, so that they can multiply integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.ir.integer_coding import LEAST, decode, encode, token_step
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, Weight, call
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.calibration.calibrate import peaks


@dataclass(frozen=True)
class QuantizeInputs(Pass):
    """Codes the inputs of linears on quantised weights in int8: with 8-bit weights, that is W8A8.

    onnxruntime then multiplies integers wherever many rows go through a linear at once. Put smooth before quantize: channels of
    uneven size share a step here.
    """

    name = "quantize-inputs"
    contract: ClassVar[Contract] = "lossy"
    establishes = ("quantized inputs",)
    not_after = {"quantized inputs": "inputs are quantised already"}  # noqa: RUF012

    scale: str = option("token", doc="token: the greatest magnitude of every token sets its step (dynamic); tensor: that on the "
                                     "calibration text sets one step for good (static), and what is larger is clipped",
                        choices=("token", "tensor"))

    def requires(self) -> tuple[str, ...]:
        return ("calibration",) if self.scale == "tensor" else ()

    def run(self, module: Module, ctx: Context) -> int:
        found = {func: inputs(func) for func in module.funcs.values()}
        watched = [x for values in found.values() for x in values]
        steps: dict[Value, np.ndarray] = {}
        if self.scale == "tensor" and watched:
            steps = {x: np.maximum(peak.reshape(1), LEAST) / np.float32(127)
                     for x, peak in peaks(module, watched, ctx, keep=()).items()}
        for func, values in found.items():
            for x, readers in values.items():
                code_input(func, x, readers, self._stored(steps[x], x) if x in steps else None)
        return len(watched)

    def _stored(self, step: np.ndarray, x: Value) -> ArrayWeight:
        return ArrayWeight(step.astype(x.type.dtype.numpy), call("computed", **{"pass": self.name, "key": x.hint or "x"}))


def code_input(func: Func, x: Value, readers: Sequence[Linear], step: Weight | None = None) -> None:
    """Lets linears, in order, read x through int8 codes: of one step for all, or of the step of each token when not given."""
    b = Builder(func, before=readers[0])
    by = token_step(b, x) if step is None else b.const("step", step)
    coded = decode(b, encode(b, x, by), by, x.type.dtype)
    for reader in readers:
        func.set_operand(reader, "x", coded)


def inputs(func: Func) -> dict[Value, list[Linear]]:
    """The float values that linears on quantised weights read, with these linears in order; not where a weight is looked up."""
    found: dict[Value, list[Linear]] = {}
    for op in func.ops:
        if isinstance(op, Linear) and isinstance(op.w.op, Dequantize) and not isinstance(op.x, Const):
            found.setdefault(op.x, []).append(op)
    return found
