"""quantize-inputs: what linears on quantised weights read is rounded to 8 bits too, so that they can multiply codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.errors import PassError
from ingot.ir import float_coding, integer_coding
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, Weight, call
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.calibration.calibrate import peaks

GREATEST = {"int8": 127.0, "fp8-e4m3": float_coding.GREATEST}
"""The greatest code of the formats that have one step for a token, or for all."""


@dataclass(frozen=True)
class QuantizeInputs(Pass):
    """Codes the inputs of linears on quantised weights in 8 bits: int8 (with 8-bit weights, that is W8A8), FP8 or MXFP8.

    onnxruntime then multiplies integers wherever many rows go through a linear at once; kernels for GPUs multiply codes where
    the weights have them too: int8 and fp8-e4m3 with one step for a row (`group=0`), and mxfp8 inputs with mxfp4 weights. Put
    smooth before quantize: channels of uneven size share a step here.
    """

    name = "quantize-inputs"
    contract: ClassVar[Contract] = "lossy"
    establishes = ("quantized inputs",)
    not_after = {"quantized inputs": "inputs are quantised already"}  # noqa: RUF012

    scale: str = option("token", doc="token: the greatest magnitude of every token sets its step (dynamic); tensor: that on the "
                                     "calibration text sets one step for good (static), and what is larger is clipped",
                        choices=("token", "tensor"))
    format: str = option("int8", doc="int8; fp8-e4m3; mxfp8: fp8-e4m3 where every 32 features of a token have a power of two as "
                                     "their own step (OCP Microscaling), which is always dynamic",
                         choices=(*GREATEST, "mxfp8"))

    def __post_init__(self) -> None:
        if self.format == "mxfp8" and self.scale == "tensor":
            raise PassError(f"{self.name}: mxfp8 has a step for every 32 features of a token, so there is none for all",
                            hint="leave scale out, or take format=fp8-e4m3")

    def requires(self) -> tuple[str, ...]:
        return ("calibration",) if self.scale == "tensor" else ()

    def run(self, module: Module, ctx: Context) -> int:
        found = {func: inputs(func) for func in module.funcs.values()}
        watched = [x for values in found.values() for x in values]
        if self.format == "mxfp8":
            _need_blocks(found)
        steps: dict[Value, np.ndarray] = {}
        if self.scale == "tensor" and watched:
            steps = {x: np.maximum(peak.reshape(1), integer_coding.LEAST) / np.float32(GREATEST[self.format])
                     for x, peak in peaks(module, watched, ctx, keep=()).items()}
        for func, values in found.items():
            for x, readers in values.items():
                code_input(func, x, readers, self._stored(steps[x], x) if x in steps else None, format=self.format)
        return len(watched)

    def _stored(self, step: np.ndarray, x: Value) -> ArrayWeight:
        kind = x.type.dtype if self.format == "int8" else float_coding.computed(x.type.dtype)
        return ArrayWeight(step.astype(kind.numpy), call("computed", **{"pass": self.name, "key": x.hint or "x"}))


def code_input(func: Func, x: Value, readers: Sequence[Linear], step: Weight | None = None, *, format: str = "int8") -> None:
    """Lets linears, in order, read x through codes: of one step for all, or of the step of each token (with mxfp8, of each 32 of
    its features) when not given."""
    b = Builder(func, before=readers[0])
    if format == "mxfp8":
        coded = float_coding.coded_in_blocks(b, x)
    elif format == "fp8-e4m3":
        by = float_coding.token_step(b, x) if step is None else b.const("step", step)
        coded = float_coding.decode(b, float_coding.encode(b, x, by), by, x.type.dtype)
    else:
        by = integer_coding.token_step(b, x) if step is None else b.const("step", step)
        coded = integer_coding.decode(b, integer_coding.encode(b, x, by), by, x.type.dtype)
    for reader in readers:
        func.set_operand(reader, "x", coded)


def inputs(func: Func) -> dict[Value, list[Linear]]:
    """The float values that linears on quantised weights read, with these linears in order; not where a weight is looked up."""
    found: dict[Value, list[Linear]] = {}
    for op in func.ops:
        if isinstance(op, Linear) and isinstance(op.w.op, Dequantize) and not isinstance(op.x, Const):
            found.setdefault(op.x, []).append(op)
    return found


def _need_blocks(found: dict[Func, dict[Value, list[Linear]]]) -> None:
    """Raises PassError, naming the first, where inputs do not fall into blocks."""
    for values in found.values():
        for x, (reader, *_) in values.items():
            k = reader.w.type.dims[1]
            if not isinstance(k, int) or k % float_coding.BLOCK:
                raise PassError(f"mxfp8: {x!r} does not fall into blocks of {float_coding.BLOCK} features", where=reader.loc,
                                hint="take format=fp8-e4m3 or int8")
