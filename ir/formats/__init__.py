"""The table of quantised weight formats, and the one interface through which codes are chosen.

A format stores a weight [n, k] as codes; `group` consecutive elements of a row share a step:

    value = grid(code) * step            integers: (code - zero) * step

Everything that chooses codes (round to nearest, GPTQ, AWQ, ...) goes through these calls. They are vectorised over any
leading axes, take and give float32, and work on a whole weight as well as one column at a time:

    fmt = format_named("nvfp4")
    top = fmt.tensor_scale(w)                        # once, from the whole weight; None but for two-level formats
    for start in range(0, k, group):                 # whole rows: group = k
        step, zero = fmt.parameters(w[:, start:start + group], symmetric=True, tensor_scale=top)     # [n], and [n] or None
        for j in range(start, min(start + group, k)):
            codes[:, j] = fmt.encode(w[:, j], step, zero)                                            # in fmt.code.numpy
            back = fmt.decode(codes[:, j], step, zero)                                               # f32 [n]
    scales = fmt.settle(steps, zeros, top)           # steps f32[n, groups], zeros u8[n, groups] or None, as stored
    Coded(fmt, group, codes, scales)                 # .parts: operands of `dequantize`; .decoded(): the weight again

Steps that `parameters` gives are exact in storage, with one exception: nf4's are coded once more, over the whole weight,
when they settle. An algorithm that knows all steps beforehand settles first and encodes with `scales.step`. Several
candidates for a step come from `fmt.parameters(..., ratio=r) for r in fmt.ratios`.

`dequantize(@packed, @scale[, @zero][, @tensor_scale][, @offset]) {format, group}` is the meaning in the graph:
`packed` [n, k] and `zero` [n, groups] in `fmt.code`; scale, tensor_scale and offset as `scaling.steps` reads them.

    name       code      default group  scales                                       bits per weight at that group
    int8..int2 u8..u2    32 (0..256)    f32, and a zero point unless symmetric       8 / 4 / 3 / 2 + 1 (+ bits / 32)
    nf4        u4        64             u8 coded, f32 per 256 of them, f32 mean      4.127
    fp4        f4e2m1    32 (0..256)    f32                                          5
    mxfp4      f4e2m1    32             e8m0                                         4.25
    nvfp4      f4e2m1    16             e4m3 under one f32 of the tensor             4.5
    fp8-e4m3   f8e4m3    a row (0..256) f32                                          8 + 32 / k
    fp8-e5m2   f8e5m2    a row (0..256) f32                                          8 + 32 / k
"""

from __future__ import annotations

from ingot.errors import IRError
from ingot.ir.formats.format import CLIPS, Coded, Format, Scales, dequantized
from ingot.ir.formats.grid import Minifloat, Table
from ingot.ir.formats.integer import Integer
from ingot.ir.formats.packing import grouped, pack_bits, unpack_bits
from ingot.ir.formats.scaling import DOUBLE, E8M0, TWO_LEVEL, steps
from ingot.ir.types import f4e2m1, f8e4m3, f8e5m2, u2, u3, u4, u8

_FOUR_OVER_SIX = (1.0, 1.5, *CLIPS[1:])
"""e2m1 has nothing between 4 and 6, so the greatest element may fare better as a 4 (Four Over Six, arXiv 2512.02010)."""

FORMATS: dict[str, Format] = {f.name: f for f in (
    *(Integer(f"int{code.bits}", code, worst=2.0 / (1 << code.bits)) for code in (u8, u4, u3, u2)),
    Table("nf4", u4, worst=0.16, group=64, groups=(16, 32, 64, 128, 256), scaling=DOUBLE),
    Minifloat("fp4", f4e2m1, worst=1 / 6, ratios=_FOUR_OVER_SIX),
    # Twice the step, "one up", clips nothing; half of it would clip half of the group's range.
    Minifloat("mxfp4", f4e2m1, worst=1 / 4, groups=(32,), scaling=E8M0, ratios=(1.0, 2.0)),
    Minifloat("nvfp4", f4e2m1, worst=1 / 5, group=16, groups=(16,), scaling=TWO_LEVEL, ratios=_FOUR_OVER_SIX),
    Minifloat("fp8-e4m3", f8e4m3, worst=1 / 28, group=0),
    Minifloat("fp8-e5m2", f8e5m2, worst=1 / 14, group=0))}


def format_named(name: str) -> Format:
    """Raises IRError, listing the formats, for an unknown name."""
    if name not in FORMATS:
        raise IRError(f"unknown format {name}", hint=f"formats: {', '.join(FORMATS)}")
    return FORMATS[name]


__all__ = ["FORMATS", "Coded", "Format", "Integer", "Scales", "dequantized", "format_named", "grouped", "pack_bits", "steps",
           "unpack_bits"]
