"""quantize: weights of linears become packed codes and scales, decoded by `dequantize` in front of the linear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ingot.errors import PassError
from ingot.ir.formats import FORMATS
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Cast, Pointwise
from ingot.ir.value import Const
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.quantization import rtn
from ingot.passes.quantization.allot import Choice, allot
from ingot.passes.quantization.scheme import Scheme
from ingot.passes.quantization.select_weights import selected
from ingot.passes.quantization.sensitivity import sensitivities
from ingot.passes.quantization.sequential import in_order, quantize_in_order


@dataclass(frozen=True)
class Quantize(Pass):
    """Stores the weights of linears in few bits, scaled in groups along their inputs.

    The output projection (the linear behind the returned logits) and the token embedding are chosen apart; where both
    are one tied weight, both read the same codes.
    """

    name = "quantize"
    contract: ClassVar[Contract] = "lossy"
    establishes = ("quantized",)
    not_after = {"quantized": "its weights are quantised already"}  # noqa: RUF012

    format: str = option("int4", doc="format of the weights", choices=tuple(FORMATS))
    group: int | None = option(None, doc="inputs that share a scale (the last may be shorter), 0: one scale per output "
                                         "channel; as is usual for the format when not given", choices=(0, 16, 32, 64, 128, 256))
    symmetric: bool = option(False, doc="no zero points (only the integer formats have them)")
    per_tensor: bool = option(False, doc="one scale for the whole weight (formats whose scales are plain floats)")
    method: str = option("rtn", doc="how codes are chosen: rtn, the nearest; gptq, so that later columns and weights make good "
                                    "what earlier ones lose on the calibration text", choices=("rtn", "gptq"))
    compensate: bool = option(True, doc="gptq: weights also make good what rounding before them has done to their inputs; "
                                        "without, calibration runs the model once instead of twice")
    clip: str = option("none", doc="mse: of several scales for each group, the one that leaves the least squared error; "
                                   "mxfp4 then also tries a scale one power of two up", choices=("none", "mse"))
    lm_head: str = option("same", doc="format of the output projection, `same`, or `none` to leave it",
                          choices=(*FORMATS, "same", "none"))
    embedding: bool = option(True, doc="quantise a token embedding tied to the output projection with it")
    only: tuple[str, ...] = option((), doc="the weights to quantise (all): name patterns joined by +, of weights or of the "
                                           "checkpoint's tensors they are made from")
    skip: tuple[str, ...] = option((), doc="weights left alone: name patterns joined by +, as in `only`")
    budget: float | None = option(None, doc="bits per weight, scales counted, that all weights together may take: each gets the "
                                            "format and group by which the model's predictions change least")
    mix: tuple[str, ...] = option(("int3", "int4", "int8"), doc="formats that a budget chooses from, in groups of `group` and 32")

    def __post_init__(self) -> None:
        fmt = FORMATS[self.format]
        if self.group not in (None, *fmt.groups):
            raise PassError(f"{fmt.name} has groups of {' or '.join(map(str, fmt.groups))}, not of {self.group}",
                            hint="leave group out")
        if self.per_tensor and fmt.scaling.bits != 32:
            raise PassError(f"{fmt.name} has a scale for each group by definition", hint="leave per-tensor out")
        if unknown := [name for name in self.mix if name not in FORMATS]:
            raise PassError(f"unknown format {unknown[0]}", hint=f"formats: {', '.join(FORMATS)}")

    def requires(self) -> tuple[str, ...]:
        return ("calibration",) if self.method == "gptq" or self.budget is not None else ()

    def run(self, module: Module, ctx: Context) -> int:
        sites = self._sites(module)
        if self.budget is not None:
            sites = self._within(self.budget, module, sites, ctx)
        measured = {}
        rest = sites
        if self.method == "gptq":
            fitted = {const: sites[const] for const in in_order(module, sites) if not sites[const].per_tensor}
            measured = quantize_in_order(module, fitted, ctx, compensate=self.compensate, made_by=self.name) if fitted else {}
            rest = {const: scheme for const, scheme in sites.items() if const not in fitted}
        for done, (const, scheme) in enumerate(rest.items()):
            ctx.step(done, len(rest), const.name)
            for func in module.funcs.values():
                self._quantize(func, const, scheme)
        size = sum(math.prod(c.type.shape) for c in sites)
        ctx.details = {"weights": len(sites), "bits": sorted({s.format.bits for s in sites.values()}),
                       "bits_per_weight": round(sum(s.stored_bits(c) for c, s in sites.items()) / max(size, 1), 4), **measured}
        for func in module.funcs.values():
            func.drop_dead()
        return len(sites)

    def _sites(self, module: Module) -> dict[Const, Scheme]:
        heads = output_linears(module.main)
        linears = [op for op in module.ops if isinstance(op, Linear) and isinstance(op.w, Const) and op.w.type.dtype.is_float]
        chosen = selected([op.w for op in linears if isinstance(op.w, Const)], only=self.only, skip=self.skip)
        sites: dict[Const, Scheme] = {}
        for op in linears:
            wanted = self.lm_head if op in heads and self.lm_head != "same" else self.format
            if isinstance(op.w, Const) and op.w in chosen and wanted != "none":
                sites[op.w] = self._scheme(module, op.w, wanted)
        return sites

    def _within(self, budget: float, module: Module, sites: dict[Const, Scheme], ctx: Context) -> dict[Const, Scheme]:
        """The sites, each in the format of the mix that it is to have.

        Embeddings and an output projection with a format of its own keep theirs, as do weights that nothing is known about.
        """
        known = sensitivities(module, sites, ctx, fitted=self.method == "gptq")
        choices: dict[Const, list[Choice[Scheme]]] = {}
        for const, usual in sites.items():
            fixed = usual.per_tensor or usual.format.name != self.format or self._looked_up(const)
            if fixed or const not in known:
                choices[const] = [Choice(usual, usual.stored_bits(const), 0.0)]
                continue
            w = const.weight.materialize()
            choices[const] = [Choice(each, each.stored_bits(const), known[const].loss(w, each)) for each in self._candidates()]
        size = sum(math.prod(const.type.shape) for const in sites)
        chosen = allot(choices, budget * size)
        if chosen is None:
            least = sum(min(c.bits for c in given) for given in choices.values()) / size
            raise PassError(f"a budget of {budget:g} bits per weight is too small", hint=f"the least is {least:.3f}")
        return {const: choice.what for const, choice in chosen.items()}

    def _candidates(self) -> list[Scheme]:
        schemes = [Scheme(FORMATS[name], group if group in FORMATS[name].groups else FORMATS[name].group, self.symmetric)
                   for name in self.mix for group in (self.group, 32) if group is not None]
        return list(dict.fromkeys(schemes))

    def _scheme(self, module: Module, const: Const, name: str) -> Scheme:
        fmt, k = FORMATS[name], const.type.shape[1]
        group = self.group if self.group in fmt.groups else fmt.group
        if self._looked_up(const):
            # Looking a row up is fastest in whole groups; a product pads the last one.
            whole = fitting(group, k)
            group = whole if whole in fmt.groups else group
        return Scheme(fmt, group, self.symmetric, self.per_tensor and fmt.scaling.bits == 32)

    def _looked_up(self, const: Const) -> bool:
        """Whether a weight is an embedding that is quantised too."""
        return self.embedding and any(isinstance(user, Embedding) for user in const.users)

    def _quantize(self, func: Func, const: Const, scheme: Scheme) -> None:
        kinds = (Linear, Embedding) if self.embedding else (Linear,)
        users = [op for op in func.ops if isinstance(op, kinds) and op.w is const]
        if not users:
            return
        k = const.type.shape[1]
        code = partial(rtn.rounded, fmt=scheme.format, group=scheme.width(k), symmetric=scheme.symmetric,
                       per_tensor=scheme.per_tensor, search=self.clip == "mse")
        scheme.place(func, const, users, scheme.weights(const, code, made_by=self.name))


def fitting(group: int, k: int) -> int:
    """`group` halved until it divides k, but never below 16; 0, a whole row, as it is."""
    while group > 16 and k % group:
        group //= 2
    return group


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
