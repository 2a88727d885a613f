"""gqa: merges key and value heads, so that more query heads share one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.errors import PassError
from ingot.ir.copy import copied
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.passes.base import Context, Pass, option
from ingot.passes.calibration.track import Track
from ingot.passes.grouping.features import features_of
from ingot.passes.grouping.fit import fit, wanted
from ingot.passes.grouping.heads import Heads, Seen, losses, merged, order, pooled
from ingot.passes.grouping.partition import divided, neighbours
from ingot.passes.grouping.rebuild import rebuild
from ingot.passes.grouping.site import Site, find_site, linears_behind, makers
from ingot.passes.pruning.refit import Site as Refitted
from ingot.passes.pruning.refit import refit_site
from ingot.passes.quantization.channels import Channels
from ingot.passes.quantization.select_weights import selected


@dataclass(frozen=True)
class Gqa(Pass):
    """Fewer key and value heads: multi-head attention becomes grouped- or multi-query attention, grouped gets fewer groups.

    The KV cache shrinks by the same factor. `method=align` puts heads together that lose least by it, takes what attention does
    not notice (see `shared`) out of their differences, merges them, and fits queries, keys, values and what reads the result to
    what the original attention gives on calibration text, one attention after the other, each on what those before it left.
    """

    name = "gqa"
    contract = "edit"
    not_after = {"quantized": "it merges float weights",  # noqa: RUF012
                 "cached": "caches hold the values of heads; put it before insert-kv-cache"}

    kv_heads: int = option(doc="how many key and value heads are left")
    method: str = option("align", doc="align: heads that are alike go together, turned to be more alike, and all is fitted to "
                         "calibration text; mean: neighbours are averaged, nothing else changes", choices=("align", "mean"))
    repair: str = option("all", doc="none; attention: its weights are fitted to what the original gives; all: those of the "
                         "linears behind it are, too", choices=("none", "attention", "all"))
    steps: int = option(32, doc="steps of gradient descent for each attention, of one batch of calibration text each")
    ridge: float = option(0.1, doc="how strongly weights refitted in closed form are held to the old ones: less for much text")
    only: tuple[str, ...] = option((), doc="the weights whose key or value heads are merged (all): name patterns joined by +")
    skip: tuple[str, ...] = option((), doc="weights whose heads stay as they are: name patterns joined by +")

    def __post_init__(self) -> None:
        if self.kv_heads < 1:
            raise PassError(f"gqa leaves at least one key head, not {self.kv_heads}")
        if self.steps < 0 or self.ridge < 0:
            raise PassError("steps and ridge must not be negative")

    def requires(self) -> tuple[str, ...]:
        return () if self.method == "mean" else ("calibration",)

    def run(self, module: Module, ctx: Context) -> int:
        sites = self._sites(module)
        if not sites:
            return 0
        if self.method == "mean":
            for site in sites:
                heads = _heads(site)
                found = pooled(heads, neighbours(len(heads.k), self.kv_heads))
                rebuild(module.main, site, found, np.arange(len(heads.q)), made_by=self.name)
            return len(sites)
        for site in sites:
            _check(site)
        twin, twins = copied(module)
        track, before = Track(module, ctx.calibration), Track(twin, ctx.calibration)
        entries: list[dict[str, Any]] = []
        for done, site in enumerate(sites):
            ctx.step(done, len(sites), site.name)
            entries.append(self._align(module, site, track, before, twins))
            if self.repair != "all":
                continue
            end = sites[done + 1].linears[0] if done + 1 < len(sites) else None
            entries += self._refit(module, site, end, track, before, twins)
        ctx.details = {"sites": entries}
        return len(sites)

    def _sites(self, module: Module) -> list[Site]:
        ops = [op for op in module.main.ops if isinstance(op, Attention) and op.heads[1] > self.kv_heads]
        made = {op: makers(op) for op in ops}
        names = dict.fromkeys(const for consts in made.values() for const in consts)
        wanted, free = selected(names, only=self.only), selected(names, skip=self.skip)
        channels = Channels(module.main, mixing=True)
        found: list[Site] = []
        for op in ops:
            if not wanted & set(made[op]) or not free >= set(made[op]):
                continue
            if op.heads[1] % self.kv_heads:
                raise PassError(f"{op.heads[1]} key heads cannot become {self.kv_heads} of as many heads each, at {op.result!r}",
                                where=op.loc, hint="take a number that divides theirs, or name their weights in skip")
            found.append(find_site(op, channels))
        return found

    def _align(self, module: Module, site: Site, track: Track, before: Track, twins: Mapping[Value, Value]) -> dict[str, Any]:
        """Merge the heads of one attention; returns its entry of the receipt."""
        assert site.out is not None
        original = _twin(site.out, twins)
        track.advance(min(site.linears, key=module.main.ops.index))
        old, seen, features = _heads(site, out=True), _seen(site, track), features_of(site.q, site.k)
        count = len(old.k)
        groups = divided(losses(old, seen, features), self.kv_heads) if site.movable else neighbours(count, self.kv_heads)
        heads, keys, values = merged(old, seen, features, groups)
        rebuild(module.main, site, heads, order(groups, old.per_key), made_by=self.name)
        consts = [v for linear in (*site.linears, site.out) for v in (linear.w, linear.bias) if isinstance(v, Const)]
        found = {"name": site.name, "groups": [list(group) for group in groups], "keys_lost": keys, "values_lost": values}
        if self.repair == "none":
            return found
        targets = wanted(site.out, original, track, before)
        first, last = fit(module, site.out, consts, track, targets, steps=self.steps, made_by=self.name)
        return found | {"merged": first, "error": last}

    def _refit(self, module: Module, site: Site, end: Op | None, track: Track, before: Track,
               twins: Mapping[Value, Value]) -> list[dict[str, Any]]:
        """Refit the linears behind an attention up to the next one in closed form; returns their entries."""
        assert site.out is not None
        found: list[dict[str, Any]] = []
        for linear in linears_behind(module.main, site.out, end):
            assert isinstance(linear.w, Const)
            rows, columns = (np.ones(n, bool) for n in linear.w.type.shape)
            place = Refitted(linear, _twin(linear, twins), rows, columns)
            lost = refit_site(module, place, track, before, how="fit", ridge=self.ridge, biases=False, made_by=self.name)
            found.append({"name": linear.w.name, "error": lost})
        return found


def _twin(linear: Linear, twins: Mapping[Value, Value]) -> Linear:
    op = twins[linear.result].op
    assert isinstance(op, Linear)
    return op


def _check(site: Site) -> None:
    """Raises PassError, naming the value, where heads can be averaged but not aligned."""
    hint = "take method=mean, or name its weights in skip"
    if site.out is None:
        raise PassError(f"heads cannot be aligned: {site.why_not}", where=site.attention.loc, hint=hint)
    if site.v.steps:
        raise PassError(f"heads cannot be aligned: {site.v.steps[0].name} stands between values and attention, at "
                        f"{site.attention.v!r}", where=site.attention.loc, hint=hint)
    if len({linear.x for linear in site.linears}) > 1:
        raise PassError(f"heads cannot be aligned: queries and keys are made from different values, at {site.attention.k!r}",
                        where=site.attention.loc, hint=hint)


def _heads(site: Site, *, out: bool = False) -> Heads:
    read = None
    if out and site.out is not None and isinstance(site.out.w, Const):
        read = site.out.w.weight.materialize().astype(np.float64)[:, site.columns]
    return Heads(site.q.weight(), site.k.weight(), site.v.weight(), read)


def _seen(site: Site, track: Track) -> Seen:
    """Second moments of what the linears of a site read; the module was run to them."""
    import torch

    x = site.k.linear.x
    rows = [torch.cat([r, torch.ones(len(r), 1)], 1) for i in range(len(track.live)) for r in [track.rows(x, i)]]
    wide = sum((r.T @ r for r in rows), torch.zeros(())).double().numpy() / sum(map(len, rows))
    return Seen(*(wide[:-1, :-1] if s.linear.bias is None else wide for s in (site.q, site.k, site.v)))
