"""quantize: weights of linears become packed codes and scales, decoded by `dequantize` in front of the linear."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ingot.ir.formats import FORMATS, Format
from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Cast, Pointwise
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Const
from ingot.ir.weights import derived_together
from ingot.passes import rtn
from ingot.passes.base import Context, Pass, option


@dataclass(frozen=True)
class Quantize(Pass):
    """Stores the weights of linears in few bits, scaled in groups along their inputs.

    The output projection (the linear behind the returned logits) and the token embedding are chosen apart; where both
    are one tied weight, both read the same codes.
    """

    name = "quantize"
    contract: ClassVar[Literal["exact", "lossy", "cache"]] = "lossy"
    establishes = ("quantized",)
    not_after = {"quantized": "its weights are quantised already"}  # noqa: RUF012

    format: str = option("int4", doc="format of the weights", choices=tuple(FORMATS))
    group: int = option(32, doc="inputs that share a scale (the last group may be shorter); 0: one scale per output channel",
                        choices=(0, 16, 32, 64, 128, 256))
    symmetric: bool = option(False, doc="no zero points")
    method: str = option("rtn", doc="how codes are chosen", choices=("rtn",))
    lm_head: str = option("same", doc="format of the output projection, `same`, or `none` to leave it",
                          choices=(*FORMATS, "same", "none"))
    embedding: bool = option(True, doc="quantise a token embedding tied to the output projection with it")
    skip: tuple[str, ...] = option((), doc="weights left alone: name patterns joined by +")

    def run(self, module: Module, ctx: Context) -> int:
        sites = self._sites(module)
        for done, (const, fmt) in enumerate(sites.items()):
            ctx.step(done, len(sites), const.name)
            for func in module.funcs.values():
                self._quantize(func, const, fmt)
        ctx.details = {"weights": len(sites), "bits": sorted({f.bits for f in sites.values()})}
        for func in module.funcs.values():
            func.drop_dead()
        return len(sites)

    def _sites(self, module: Module) -> dict[Const, Format]:
        heads = output_linears(module.main)
        sites: dict[Const, Format] = {}
        for op in module.ops:
            if isinstance(op, Linear) and isinstance(op.w, Const) and op.w.type.dtype.is_float:
                wanted = self.lm_head if op in heads and self.lm_head != "same" else self.format
                if wanted != "none" and not any(fnmatch.fnmatch(op.w.name, p) for p in self.skip):
                    sites[op.w] = FORMATS[wanted]
        return sites

    def _quantize(self, func: Func, const: Const, fmt: Format) -> None:
        kinds = (Linear, Embedding) if self.embedding else (Linear,)
        users = [op for op in func.ops if isinstance(op, kinds) and op.w is const]
        if not users:
            return
        rows, k = const.type.shape
        # Looking a row up needs whole groups; a product pads the last one.
        group = fitting(self.group, k) if any(isinstance(u, Embedding) for u in users) else self.group or k
        coded = TensorType(fmt.code, (rows, k))
        per_group = TensorType(f32, (rows, -(-k // group)))
        types = {"packed": coded, "scale": per_group} | ({} if self.symmetric else {"zero": per_group.with_dtype(fmt.code)})

        def encode(w: np.ndarray) -> tuple[np.ndarray, ...]:
            scale, zero = rtn.scales(w, fmt, group=group, symmetric=self.symmetric)
            made = (rtn.codes(w, fmt, scale, zero, group=group), scale) + (() if zero is None else (zero,))
            return tuple(array.astype(t.dtype.numpy, copy=False) for array, t in zip(made, types.values()))

        b = Builder(func, before=users[0])
        weights = derived_together("quantize", encode, const.weight, types=types, key=const.name)
        parts = {part: b.const(f"{const.name}.{part}", weight) for part, weight in weights.items()}
        decoded = b(Dequantize(**parts, format=fmt.name, group=group, dtype=const.type.dtype), hint="w")
        for user in users:
            func.set_operand(user, "w", decoded)


def fitting(group: int, k: int) -> int:
    """The group size for k inputs: all of them for 0, else `group` halved until it divides k, but never below 16."""
    while group > 16 and k % group:
        group //= 2
    return group or k


def output_linears(func: Func) -> set[Op]:
    """The linears behind a func's first result, with nothing but elementwise ops between."""
    found: set[Op] = set()
    queue = list(func.returns[:1])
    while queue:
        op = queue.pop().op
        if isinstance(op, Linear):
            found.add(op)
        elif isinstance(op, Pointwise | Cast):
            queue.extend(op.operands)
    return found
