"""sparsify: small elements of linears become zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Const
from ingot.ir.weights import derived
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.quantization.quantize import output_linears
from ingot.passes.quantization.select_weights import selected
from ingot.passes.quantization.sequential import RIDGE, in_order, measured_in_order
from ingot.passes.sparsity.masks import Pattern, magnitude, sparsegpt, wanda
from ingot.passes.stored import stored

SPANS = {"unstructured": None, "2:4": 4, "4:8": 8}


@dataclass(frozen=True)
class Sparsify(Pass):
    """Sets elements of the weights of linears to zero: 2 of every 4, or the part `ratio` of every row or weight.

    Weights stay dense tensors of the shape they had: neither the artifact nor a step of decoding becomes smaller or faster by
    itself. It is for hardware and libraries that know such patterns, and for measuring what they cost; `heal` keeps the zeros
    where they are. The output projection and the token embedding are left alone, unless `only` names them.
    """

    name = "sparsify"
    contract: ClassVar[Contract] = "lossy"
    limits: ClassVar[Mapping[str, float]] = {}  # how much is lost is for the ratio to say
    not_after = {"quantized": "it thins out float weights"}  # noqa: RUF012

    pattern: str = option("unstructured", doc="where zeros may be: anywhere, or half of every 4 or 8 neighbours of a row",
                          choices=tuple(SPANS))
    ratio: float = option(0.5, doc="the part that becomes zero, where the pattern does not say it")
    method: str = option("sparsegpt", doc="what goes: the least by magnitude; by wanda, the least on the calibration text; by "
                         "sparsegpt, so that later columns make good what earlier ones lose",
                         choices=("sparsegpt", "wanda", "magnitude"))
    only: tuple[str, ...] = option((), doc="the weights to thin out (all but the output projection): name patterns joined by +")
    skip: tuple[str, ...] = option((), doc="weights left alone: name patterns joined by +")

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise PassError(f"sparsify takes a ratio between 0 and 1, not {self.ratio:g}")
        if self.pattern != "unstructured" and self.ratio != 0.5:
            raise PassError(f"the pattern {self.pattern} has half of its elements zero", hint="leave ratio out")

    def requires(self) -> tuple[str, ...]:
        return () if self.method == "magnitude" else ("calibration",)

    def run(self, module: Module, ctx: Context) -> int:
        sites = self._sites(module)
        pattern = Pattern(self.ratio, SPANS[self.pattern])
        fitted = [] if self.method == "magnitude" else in_order(module, sites)
        errors = self._in_order(module, fitted, pattern, ctx) if fitted else {}
        for const in (c for c in sites if c not in fitted):
            thin = partial(magnitude, pattern=pattern)
            module.set_weight(const, derived(self.name, thin, const.weight, key=const.name, type=const.type))
        ctx.details = {"weights": len(sites), "by_magnitude": len(sites) - len(fitted)}
        if errors:
            worst = max(errors, key=errors.__getitem__)
            ctx.details |= {"lost": {"mean": float(np.mean(list(errors.values()))), "worst": errors[worst], "weight": worst},
                            "sites": [{"name": name, "error": error} for name, error in errors.items()]}
        return len(sites)

    def _sites(self, module: Module) -> list[Const]:
        heads = output_linears(module.main)
        linears = [op for op in module.ops if isinstance(op, Linear) and isinstance(op.w, Const) and op.w.type.dtype.is_float]
        consts = list(dict.fromkeys(op.w for op in linears if isinstance(op.w, Const)))
        spared = set() if self.only else {op.w for op in linears if op in heads}
        chosen = selected(consts, only=self.only, skip=self.skip)
        return [const for const in consts if const in chosen and const not in spared]

    def _in_order(self, module: Module, consts: list[Const], pattern: Pattern, ctx: Context) -> dict[str, float]:
        """Thin weights out in graph order, each on what the text shows behind those before it; the part of what each computes
        that is lost, by name. What an interrupted run has finished is taken from its journal."""
        journal = ctx.journal.section(module, ctx.stage, ctx.calibration)
        compensate = self.method == "sparsegpt"
        errors: dict[str, float] = {}
        for behind, readers, moments in measured_in_order(module, consts, ctx, compensate=compensate):
            for const in behind:
                ctx.step(len(errors), len(consts), const.name)
                made = journal.read(const.name, {"w": TensorType(f32, const.type.dims)})
                if made is None:
                    found = moments()
                    w = const.weight.materialize().astype(np.float32)
                    if not np.isfinite(found.second).all():
                        raise PassError("its input is not finite on the calibration text", where=f"@{const.name}")
                    linear = next(reader for reader in readers if reader.w is const)
                    target = found.target(linear, w, ridge=RIDGE) if compensate else w
                    thin = (sparsegpt if compensate else wanda)(target, found.second, pattern)
                    made = {"w": thin}, {"lost": _lost(target, thin, found.second)}
                    journal.write(const.name, *made)
                errors[const.name] = made[1]["lost"]
                module.set_weight(const, stored(const.name, made[0]["w"].astype(const.type.dtype.numpy), self.name))
        return errors


def _lost(before: np.ndarray, after: np.ndarray, second: np.ndarray) -> float:
    """The part of what `before` makes of inputs with these second moments that `after` does not."""
    size, error = float(np.vdot(before @ second, before)), before - after
    return float(np.vdot(error @ second, error)) / size if size else 0.0
