"""prune: takes out the channels, heads or layers that matter least, and refits what is left."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.errors import PassError
from ingot.ir.copy import copied
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.passes.base import Context, Pass, option
from ingot.passes.pruning.coupling import Coupling
from ingot.passes.pruning.cut import cut, stays
from ingot.passes.pruning.depth import blocks, influence, least, leave_out
from ingot.passes.pruning.groups import KINDS, Group, groups
from ingot.passes.pruning.importance import IMPORTANCES, rankings
from ingot.passes.pruning.ranking import Ranking, allocate
from ingot.passes.pruning.refit import Site, refit
from ingot.passes.quantization.select_weights import selected


@dataclass(frozen=True)
class Prune(Pass):
    """Makes a model narrower, or shorter, and fits what is left to what the original computes on calibration text.

    Which rows and columns of which weights go together is found from the axis maps of the ops (see `coupling`), so that every
    tensor stays dense; layers may end up with different widths. Residual streams and outputs keep their meaning: only what a unit
    adds is lost, and of that, what the refitted weights cannot make up for (see `refit`).
    """

    name = "prune"
    contract = "edit"
    establishes = ("pruned",)
    not_after = {"quantized": "it refits float weights",  # noqa: RUF012
                 "cached": "caches hold the values of heads; put it before insert-kv-cache"}

    what: tuple[str, ...] = option(("mlp",), doc="what to take out, joined by +: mlp (channels between linears), heads (of "
                                   "queries), kv (key heads with their query heads), width (of the residual stream), conv "
                                   "(channels), features (of heads), or layers")
    ratio: float = option(0.2, doc="part of the parameters of all of it to take out, 0 to 1")
    importance: str = option("obs", doc="what decides which units go", choices=IMPORTANCES)
    uniform: bool = option(False, doc="the same ratio in every layer, rather than whatever matters least")
    multiple: int = option(16, doc="what the number of channels left is a multiple of")
    repair: str = option("fit", doc="none; mean: biases take on what is lost on average; fit: the weights that read what was cut "
                         "are fitted anew; all: every weight behind the first cut is", choices=("none", "mean", "fit", "all"))
    ridge: float = option(0.5, doc="how strongly refitted weights are held to the old ones: less for much calibration text")
    bias: bool = option(False, doc="give refitted weights without a bias one")
    only: tuple[str, ...] = option((), doc="the weights that may shrink (all): name patterns joined by +")
    skip: tuple[str, ...] = option((), doc="weights that keep their shape: name patterns joined by +")

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise PassError(f"prune takes a ratio between 0 and 1, not {self.ratio:g}")
        if self.multiple < 1 or self.ridge < 0:
            raise PassError("multiple must be 1 or more, ridge not negative")
        if unknown := [w for w in self.what if w not in (*KINDS, "layers")]:
            raise PassError(f"prune cannot take out {unknown[0]}", hint=f"what: {', '.join(KINDS)} or layers")
        if "layers" in self.what and len(self.what) > 1:
            raise PassError("layers are taken out alone", hint="write prune{what=layers ...},prune{what=... ...}")

    def requires(self) -> tuple[str, ...]:
        weights_alone = self.importance == "magnitude" and self.repair == "none" and "layers" not in self.what
        return () if weights_alone else ("calibration",)

    def run(self, module: Module, ctx: Context) -> int:
        return self._shorter(module, ctx) if "layers" in self.what else self._narrower(module, ctx)

    # --- layers -------------------------------------------------------------------------------------------------------

    def _shorter(self, module: Module, ctx: Context) -> int:
        found = blocks(module.main)
        scores = influence(module, found, ctx)
        gone = least(found, scores, self.ratio)
        if not gone:
            return 0
        twin, twins = copied(module)
        ops = module.main.ops
        behind = set(ops[min(ops.index(block.ops[-1]) for block in gone):])
        leave_out(module.main, gone)
        sites = self._sites(module, twins, {}, behind=behind)
        errors = self._repair(module, twin, twins, sites, ctx)
        ctx.details = {"blocks": len(found), "left_out": [i for i, block in enumerate(found) if block in gone],
                       "influence": [round(float(s), 5) for s in scores], **errors}
        return len(gone)

    # --- units --------------------------------------------------------------------------------------------------------

    def _narrower(self, module: Module, ctx: Context) -> int:
        coupling = Coupling(module.main)
        chosen = self._chosen(module, coupling)
        ranked = rankings(module, chosen, ctx, importance=self.importance,
                          level=self.importance == "obs" or (self.importance == "wanda" and not self.uniform))
        counts = allocate(ranked, ratio=self.ratio, multiple=self.multiple, uniform=self.uniform)
        kept = {group: _mask(group, ranked[group], count) for group, count in counts.items() if count}
        if not kept:
            return 0
        whole = sum(math.prod(c.type.shape) for c in {c for g in chosen for c, _ in g.members})
        remain = {const: stays(coupling, const, kept) for const in module.consts.values()}
        twin, twins = copied(module)
        mapping = cut(module.main, coupling, kept, made_by=self.name)
        now = {mapping.get(old, old): theirs for old, theirs in twins.items()}
        sites = self._sites(module, now, remain)
        errors = self._repair(module, twin, now, sites, ctx)
        left = sum(math.prod(c.type.shape) for c in {c for g in chosen for c, _ in g.members})
        widths = {g.name: [g.size, int(kept[g].sum()) if g in kept else g.size] for g in chosen}
        ctx.details = {"units": int(sum((~mask).sum() for mask in kept.values())), "ratio": round(1 - left / whole, 5),
                       "parameters": [whole, left], "widths": widths, **errors}
        return len(kept)

    def _chosen(self, module: Module, coupling: Coupling) -> list[Group]:
        found = groups(coupling, kinds=self.what)
        consts = dict.fromkeys(c for group in found for c, _ in group.members)
        wanted = selected(consts, only=self.only)
        shielded = set(consts) - selected(consts, skip=self.skip)
        held = {group: {const for const, _ in group.members} for group in found}
        found = [group for group in found if held[group] & wanted and not held[group] & shielded]
        owners: dict[Const, str] = {}
        for group in found:
            for const, _ in group.members:
                if owners.setdefault(const, group.kind) != group.kind:
                    raise PassError(f"{owners[const]} and {group.kind} both take from @{const.name}",
                                    hint="take them out one after the other, in two passes")
        return found

    # --- repair -------------------------------------------------------------------------------------------------------

    def _sites(self, module: Module, twins: Mapping[Value, Value], remain: Mapping[Const, tuple[np.ndarray, ...]], *,
               behind: Collection[Op] = ()) -> list[Site]:
        """The linears to refit: those whose columns were cut, or all from the first such one, or those `behind` a cut, on."""
        found: list[Site] = []
        if self.repair == "none":
            return found
        for op in module.main.ops:
            if not isinstance(op, Linear) or not isinstance(op.w, Const) or len(op.w.users) > 1 or not op.w.type.dtype.is_float:
                continue
            original = twins[op.result].op
            assert isinstance(original, Linear)
            rows, columns = remain.get(op.w) or tuple(np.ones(n, bool) for n in original.w.type.shape)
            late = self.repair == "all" and (found or op in behind) and op.result not in module.main.returns
            if late or not columns.all():
                found.append(Site(op, original, rows, columns))
        return found

    def _repair(self, module: Module, twin: Module, twins: Mapping[Value, Value], sites: Sequence[Site],
                ctx: Context) -> dict[str, object]:
        if not sites:
            return {}
        errors = refit(module, twin, sites, ctx, how="mean" if self.repair == "mean" else "fit", ridge=self.ridge,
                       biases=self.bias or self.repair == "mean", made_by=self.name)
        return {"lost": {"mean": float(np.mean(list(errors.values()))), "worst": max(errors.values()),
                         "weight": max(errors, key=errors.__getitem__)},
                "sites": [{"name": name, "error": error} for name, error in errors.items()]}


def _mask(group: Group, ranking: Ranking, count: int) -> np.ndarray:
    mask = np.ones(group.size, bool)
    mask[np.concatenate(ranking.steps[:count])] = False
    return mask
