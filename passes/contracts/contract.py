"""Contracts, checked: what a pass promised is tried on what it did.

exact: the outputs in float64 stay as they were, within 1e-9 of the greatest magnitude, on several small draws of sizes and
inputs. cache: decoding in pieces equals the full forward, whatever the pieces; integer caches may be off by what their
steps explain, on calibration text. lossy: no type of an output changes and nothing becomes infinite or NaN; the cost is
measured and goes into the receipt (`error`), and values computed with rounded numbers are as near as rounding explains (see
RoundingTrial), unless these were fitted to calibration text. Beyond that a loss is no mistake of itself, so only what is worth
nothing is refused: outputs as far off as those of any other model (`Pass.limits`, "relative" 1.4, where the square root of two
is what unrelated numbers of one size come to), unless a pass sets limits of its own. edit: no type of an output changes, and
how far the outputs went is measured (`difference`).

A module that is small runs whole. A larger one is compared slice by slice (see `ingot.passes.contracts.sweep`), and runs whole
only where slices alone do not tell: a value has changed its meaning, and others after it have too.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import ContractError, IngotError
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.pointwise import Round
from ingot.ir.text.printer import names, print_op
from ingot.ir.value import Value
from ingot.passes.base import Context, Pass
from ingot.passes.contracts.decoding import DecodeTrial
from ingot.passes.contracts.difference import Difference
from ingot.passes.contracts.loss import Engine, activations, executed, interpreted, summary
from ingot.passes.contracts.loss import samples as loss_samples
from ingot.passes.contracts.repro import reproduce, write_repro
from ingot.passes.contracts.rounding import RoundingTrial
from ingot.passes.contracts.slices import extract, work
from ingot.passes.contracts.snapshot import Snapshot
from ingot.passes.contracts.sweep import Failure, Slice, Sweep
from ingot.passes.contracts.trial import ExactTrial, Finding, Trial

SMALL = 30_000_000
"""`work` up to which a module runs whole in the reference interpreter: a few million weights."""


@dataclass(frozen=True)
class Check:
    """How contracts are checked.

    seed: of all random inputs. small: `work` up to which a module runs whole. budget: `work` up to
    which a slice is widened. repro: the directory below which a broken contract is written down; None for nowhere.
    """

    seed: int = 0
    small: int = SMALL
    budget: int = 300_000_000
    repro: Path | None = None


def check_contract(p: Pass, done: Snapshot, ctx: Context, check: Check) -> dict[str, Any]:
    """Entries for the receipt of a pass that kept its contract: how it was checked, and the error of a lossy one.

    Raises ContractError, naming the first value that went wrong.
    """
    if not done.changed:
        return {}
    start = time.perf_counter()
    details = _Checker(p, done, ctx, check).run()
    details["check"]["seconds"] = round(time.perf_counter() - start, 3)
    return details


class _Checker:
    """One contract of one run of a pass."""

    def __init__(self, p: Pass, done: Snapshot, ctx: Context, check: Check) -> None:
        self.p = p
        self.check = check
        self.ctx = ctx
        done.take_rows()
        self.before, self.after = done.before, done.after
        self.pairs = done.pairs()
        self.load = sum(work(op) for module in (self.before, self.after) for op in module.ops)
        self.small = self.load <= check.small

    def run(self) -> dict[str, Any]:
        self._interface()
        if self.p.contract == "lossy":
            error = self._loss()
            self._limits(error)
            if "calibration" in self.p.requires():  # rounded so as to be near on text, which random inputs are not
                return {"error": error, "check": {"how": "outputs"}}
            return {"error": error, **self._by_slices(RoundingTrial(), activations(self.before, self.ctx, engine=self._engine()))}
        if self.p.contract == "edit":
            difference = self._loss()
            self._finite(difference)
            return {"difference": difference, "check": {"how": "types"}}
        if self.p.contract == "exact":
            return self._by_slices(ExactTrial()) if not self.small else self._whole(ExactTrial())
        trial = self._decoding()
        details = self._whole(trial) if self.small else self._by_slices(trial)
        if any(not p.type.dtype.is_float for p in self.after.main.reuse.values()):
            self._steps()
            details["error"] = self._loss()
            self._limits(details["error"])
        return details

    # --- ways to check ------------------------------------------------------------------------------------------------

    def _whole(self, trial: Trial) -> dict[str, Any]:
        found = trial.find(self.before, self.after, seed=self.check.seed, weights={})
        if found is None:
            return {"check": {"how": "whole"}}
        failure = Sweep(self.before, self.after, self.pairs, trial, self.check.budget, self.check.seed).run()
        raise self._broken(failure or self._all(found), trial)

    def _by_slices(self, trial: Trial, given: Mapping[Value, np.ndarray] | None = None) -> dict[str, Any]:
        sweep = Sweep(self.before, self.after, self.pairs, trial, self.check.budget, self.check.seed, given or {})
        failure = sweep.run()
        how = {"how": "slices", "slices": sweep.tried, "alike": sweep.alike}
        if failure is None:
            return {"check": how}
        if self.p.contract != "lossy" and sweep.undecided and trial.find(self.before, self.after, seed=self.check.seed) is None:
            return {"check": how | {"how": "slices, then whole"}}
        raise self._broken(failure, trial)

    def _decoding(self) -> DecodeTrial:
        ids = next((p for p in self.before.main.params if p.hint == "ids"), None)
        if ids is None or ids.type.rank != 2:
            raise self._error(ids, "it promises a cache, but there are no token ids %ids [batch, sequence]")
        batch, length = map(str, ids.type.dims)
        return DecodeTrial(batch=batch, length=length)

    def _steps(self) -> None:
        """Integer caches: what attention reads from them is as near on text as their steps explain, and so are the outputs."""
        outputs = self.after.main.returns
        pairs = [p for p in self.pairs if isinstance(p[1].op, Attention) or p[1] in outputs]
        before, after = (extract(m, [p[side] for p in pairs], m.main.ops, {}) for side, m in enumerate((self.before, self.after)))
        inputs = loss_samples(self.before, self.after, self.ctx, seed=self.check.seed)
        trial = RoundingTrial(ops=(Round,), engine=self._engine())
        found = trial.judge(before, after, inputs)
        if found is not None:
            raise self._broken(Failure(self._everything(pairs[found.output]), found), trial)

    def _engine(self) -> Engine:
        return interpreted if self.small else executed

    def _loss(self) -> dict[str, Any]:
        try:
            return summary(self.before, self.after, self.ctx, engine=self._engine(), seed=self.check.seed)
        except ImportError:
            return {"inputs": "none: measuring a large model needs torch"}

    # --- what is wrong ------------------------------------------------------------------------------------------------

    def _interface(self) -> None:
        """Outputs keep their types, and an exact pass asks for nothing new."""
        old, new = ([v for i, v in enumerate(m.main.returns) if i not in m.main.reuse] for m in (self.before, self.after))
        for i, value in enumerate(old):
            if i >= len(new) or new[i].type != value.type:
                became = str(new[i].type) if i < len(new) else "nothing"
                raise self._error(new[i] if i < len(new) else None, f"output {i}, {value!r}, became {became}")
        known = {p.hint for p in self.before.main.params}
        added = [p for p in self.after.main.params if p.hint not in known]
        if self.p.contract == "exact" and added:
            raise self._error(added[0], f"it added the parameter {added[0]!r}: such a pass is not exact")

    def _limits(self, error: dict[str, Any]) -> None:
        self._finite(error)
        for metric, limit in self.p.limits.items():
            got = error.get(metric)
            if got is not None and not (got >= limit if metric == "top1" else got <= limit):
                raise self._error(self.after.main.returns[0], f"{metric} {got:.4g}; {limit:g} is the limit")

    def _finite(self, error: dict[str, Any]) -> None:
        if math.isinf(error.get("relative", 0.0)):
            raise self._error(self.after.main.returns[0], "an output is infinite or NaN where it was not")

    def _all(self, finding: Finding) -> Failure:
        """A failure of the whole module."""
        place = [v for i, v in enumerate(self.after.main.returns) if i not in self.after.main.reuse][finding.output]
        return Failure(self._everything((self.before.main.returns[finding.output], place)), finding)

    def _everything(self, pair: tuple[Value, Value]) -> Slice:
        before, after = (extract(m, m.main.returns, m.main.ops, {}) for m in (self.before, self.after))
        return Slice(pair, before, after, {})

    def _broken(self, failure: Failure, trial: Trial) -> ContractError:
        old, new = failure.slice.pair
        part, found = failure.slice, failure.finding
        lines = [f"before: {_line(self.before, old)}", f"after:  {_line(self.after, new)}",
                 f"shown on {part.ops} of {len(self.after.main.ops)} ops{f', {found.note}' if found.note else ''}"]
        hint = None
        if self.check.repro is not None:
            slices = [part, *failure.wider, *([self._everything(part.pair)] if self.small else [])]
            kept = reproduce(self.p, str(names(self.after.main)[new]), [(s.before, s.after) for s in slices], trial, found.inputs,
                             seed=self.check.seed)
            try:
                folder = write_repro(self.check.repro, self.p, kept)
                hint = f"replay it with: ingot bisect {folder}{_plugin(self.p) if kept.replays else ''}"
            except IngotError as error:
                hint = f"no repro was written: {error.message}"
        return self._error(new, str(found.difference), difference=found.difference, lines=lines, hint=hint)

    def _error(self, value: Value | None, reason: str, *, difference: Difference | None = None, lines: list[str] | None = None,
               hint: str | None = None) -> ContractError:
        name = names(self.after.main).get(value) if value is not None else None
        place = f"{name}: {value.type} " if value is not None and name else ""
        what = f"{self.p} broke its contract ({self.p.contract}): {place}{reason}"
        where = value.op.loc if value is not None and value.op is not None else None
        found = difference or Difference(reason)
        return ContractError("\n  ".join([what, *(lines or [])]), stage=str(self.p), value=name, index=found.index,
                             before=found.before, after=found.after, where=where, hint=hint)


def _line(module: Module, value: Value) -> str:
    """The op that makes a value, as printed, on one line of a screen."""
    named = names(module.main)
    text = print_op(value.op, named) if value.op is not None else f"{named.get(value, value.hint)}: {value.type}"
    return text if len(text) <= 150 else text[:147] + "..."


def _plugin(p: Pass) -> str:
    """The option by which a pass from outside is found."""
    file = getattr(sys.modules.get(type(p).__module__), "__file__", None)
    return "" if file is None or type(p).__module__.startswith("ingot.") else f" --plugin {shlex.quote(file)}"
