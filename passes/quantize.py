"""quantize: weights of linears become packed codes and scales, decoded by `dequantize` in front of the linear."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ingot.ir.dims import Dim
from ingot.ir.formats import FORMATS, Format
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight, derived
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
    group: int = option(32, doc="inputs that share a scale; 0: one scale per output channel", choices=(0, 16, 32, 64, 128, 256))
    symmetric: bool = option(False, doc="no zero points")
    method: str = option("rtn", doc="how codes are chosen", choices=("rtn",))
    lm_head: str = option("same", doc="format of the output projection, `same`, or `none` to leave it", choices=(*FORMATS, "same", "none"))
    embedding: bool = option(True, doc="quantise a token embedding tied to the output projection with it")
    skip: tuple[str, ...] = option((), doc="weights left alone: name patterns joined by +")

    def run(self, module: Module, ctx: Context) -> int:
        heads = {v.op for v in module.main.returns if v.op is not None}
        sites: dict[Const, Format] = {}
        for op in module.ops:
            if isinstance(op, Linear) and isinstance(op.w, Const) and op.w.type.dtype.is_float:
                wanted = self.lm_head if op in heads and self.lm_head != "same" else self.format
                if wanted != "none" and not any(fnmatch.fnmatch(op.w.name, p) for p in self.skip):
                    sites[op.w] = FORMATS[wanted]
        for done, (const, fmt) in enumerate(sites.items()):
            ctx.step(done, len(sites), const.name)
            self._quantize(module, const, fmt)
        ctx.details = {"weights": len(sites), "bits": sorted({f.bits for f in sites.values()})}
        for func in module.funcs.values():
            func.drop_dead()
        return len(sites)

    def _quantize(self, module: Module, const: Const, fmt: Format) -> None:
        users = [u for u in const.users if isinstance(u, Linear) or (self.embedding and isinstance(u, Embedding))]
        decode = self._decode(module, const, fmt, users[0])
        for user in users:
            assert user.func is not None
            if decode.op is not None and decode.op.func is user.func:
                user.func.set_operand(user, "w", decode)

    def _decode(self, module: Module, const: Const, fmt: Format, first: Op) -> Value:
        rows, k = const.type.shape
        group = self.group or k
        groups: Dim = -(-k // group)
        w, name = const.weight, const.name

        def made(part: str, fn: object, *inputs: Weight, type: TensorType) -> Const:
            return module.add_const(f"{name}.{part}", derived("quantize", fn, *inputs, type=type, key=f"{name}.{part}"))  # type: ignore[arg-type]

        def scale_of(array: np.ndarray) -> np.ndarray:
            return rtn.scales(array, fmt, group=group, symmetric=self.symmetric)[0].astype(np.float32)

        def zero_of(array: np.ndarray) -> np.ndarray:
            zero = rtn.scales(array, fmt, group=group, symmetric=self.symmetric)[1]
            assert zero is not None
            return zero.astype(fmt.code.numpy)

        def codes_of(array: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
            plain = None if zero is None else zero.astype(np.uint8)
            return rtn.codes(array, fmt, scale, plain, group=group).astype(fmt.code.numpy)

        scale = made("scale", scale_of, w, type=TensorType(f32, (rows, groups)))
        zero = None if self.symmetric else made("zero", zero_of, w, type=TensorType(fmt.code, (rows, groups)))
        inputs = (w, scale.weight) if zero is None else (w, scale.weight, zero.weight)
        packed = made("packed", codes_of, *inputs, type=TensorType(fmt.code, (rows, k)))
        assert first.func is not None
        b = Builder(first.func, before=first)
        return b(Dequantize(packed, scale, zero, format=fmt.name, group=group, dtype=const.type.dtype), hint=f"{name.split('.')[-2]}_w" if "." in name else name)
