"""`ingot bisect`: which pass of a pipeline makes a model wrong, and which value in it; and whether a repro is still wrong."""

from __future__ import annotations

import math
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingot.compiler import Step, calibration, load
from ingot.errors import IngotError, NothingMatched, PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.stand_in import stand_in
from ingot.ir.text.printer import names, print_op
from ingot.ir.value import Value
from ingot.passes.base import Context, Pass
from ingot.passes.contracts.contract import SMALL
from ingot.passes.contracts.difference import find_difference
from ingot.passes.contracts.loss import Engine, executed, has_logits, measured, outputs, prefill, samples
from ingot.passes.contracts.repro import read_repro, rerun
from ingot.passes.contracts.slices import extract, work
from ingot.passes.contracts.snapshot import Pair, Snapshot
from ingot.passes.contracts.trial import run_on
from ingot.passes.pipeline import check_order, keep_teacher, parse_pipeline, run_pass

LIMITS = {"relative": 1e-3, "max-abs": 1e-3, "kl": 1e-3, "top1": 0.99}
"""Metrics, and what they may come to unless told otherwise: the greatest value, for top1 the least."""


@dataclass(frozen=True)
class Guilty:
    """The pass that makes a model wrong, and the first value in it that does.

    stage: the pass as pipeline text, place: its number from 1. error_before, error: of the model without and with it.
    value, op_before, op_after, where: the value afterwards, what makes it before and after, and its source line. Outputs are
    wrong by `error_value` when the model computes with what the pass made of everything up to that value, and right up to the
    one before it. difference: of the value itself. cuts: values searched, cut_runs: runs that took.
    """

    stage: str
    place: int
    error_before: float
    error: float
    value: str
    op_before: str
    op_after: str
    where: str | None
    error_value: float
    difference: str
    cuts: int
    cut_runs: int


@dataclass(frozen=True)
class Bisection:
    """What `bisect` found: the error of the whole pipeline by `metric`, the limit, and the guilty pass if there is one.

    passes: how many were searched, runs: prefixes of the pipeline that were run.
    """

    metric: str
    limit: float
    error: float
    passes: int
    runs: int
    guilty: Guilty | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        g = self.guilty
        if g is None:
            return f"nothing goes wrong: {self.metric} {self.error:.3g} after {self.passes} passes, {self.limit:g} is the limit"
        return "\n".join([
            f"{g.stage}, pass {g.place} of {self.passes}, is the first that goes wrong: {self.metric} {g.error:.3g}, "
            f"{g.error_before:.3g} before it, {self.limit:g} is the limit",
            f"{g.value}{f' at {g.where}' if g.where else ''} is the first value in it that does: {self.metric} "
            f"{g.error_value:.3g} with it; {g.difference}",
            f"  before: {g.op_before}",
            f"  after:  {g.op_after}",
            f"{self.runs} runs over {self.passes} passes (log2 {math.log2(self.passes):.1f}), "
            f"{g.cut_runs} over {g.cuts} values (log2 {math.log2(g.cuts):.1f})"])


@dataclass(frozen=True)
class Replay:
    """What became of a repro: `wrong` says whether the pass still goes wrong on it, `text` how."""

    stage: str
    value: str
    wrong: bool
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{'still wrong' if self.wrong else 'now right'}: {self.stage} at {self.value}: {self.text}"


def replay(directory: Path | str) -> Replay:
    """Run the pass of a repro on its slice again. Raises IngotError when there is no repro, or its pass is unknown."""
    repro = read_repro(Path(directory))
    if not repro.replays:
        found = repro.judge(repro.after)
        text = str(found.difference) if found is not None else "the slices agree"
        return Replay(repro.stage, repro.value, True, f"{text} (as recorded: the pass does not go wrong on the slice alone)")
    p = parse_pipeline(repro.stage)[0]
    try:
        found = rerun(p, repro.before, repro.trial, repro.inputs)[1]
    except PassError as error:
        return Replay(repro.stage, repro.value, False, f"the pass refuses: {error.message}")
    text = str(found.difference) if found is not None else "it keeps its contract"
    return Replay(repro.stage, repro.value, found is not None, text)


def bisect(model: str | Path | Module, passes: str | list[Pass], *, metric: str = "relative", limit: float | None = None,
           calib: str | Path | None = None, progress: Step | None = None) -> Bisection:
    """The first pass of a pipeline after which the outputs of a model are off by more than `limit`, and the value in it.

    Both are found by binary search, on the assumption that what went wrong stays wrong: over prefixes of the pipeline,
    then over hybrids of the model before and after the pass, which take the first values from the one and compute the rest
    as the other does. Outputs are compared with those of the traced model, in float64 by the reference interpreter for
    small models, by the torch executor for others; decoders on a prefill of calibration text. metric: relative (root mean
    square over that of the reference), max-abs, kl (nats), top1 (share of positions, at least `limit`).
    Raises IngotError for an unknown metric; see `load` and `optimize`.
    """
    if metric not in LIMITS:
        raise IngotError(f"unknown metric {metric}", hint=f"metrics: {', '.join(LIMITS)}")
    pipeline = parse_pipeline(passes) if isinstance(passes, str) else passes
    if not pipeline:
        raise IngotError("there are no passes to search", hint="name some with --passes")
    module = model if isinstance(model, Module) else load(model)
    ctx = Context()
    needed = any("calibration" in p.requires() for p in pipeline)
    try:
        ctx.calibration = calibration(None if isinstance(model, Module) else model, module, text=calib)
    except PassError:
        if needed or calib is not None:
            raise
    check_order(pipeline, module, has_calibration=ctx.calibration is not None)
    return _Bisector(module, pipeline, ctx, metric, LIMITS[metric] if limit is None else limit, progress).run()


class _Bisector:
    def __init__(self, module: Module, pipeline: list[Pass], ctx: Context, metric: str, limit: float,
                 progress: Step | None) -> None:
        self.traced = copy_module(module)
        stand_in(self.traced)
        self.pipeline = pipeline
        self.ctx = ctx
        self.metric = metric
        self.limit = limit
        self.progress = progress or (lambda done, total, what: None)
        self.engine: Engine = run_on if sum(map(work, self.traced.ops)) <= SMALL else executed
        self.inputs = samples(self.traced, self.traced, ctx, seed=0)
        self.reference = self._outputs(self.traced)

    def run(self) -> Bisection:
        good, bad = (0, self.traced), (len(self.pipeline), self._after(self.traced, 0, len(self.pipeline)))
        errors = {0: self._error(self.reference), bad[0]: self._error(self._outputs(bad[1]))}
        runs = 1
        if not self._wrong(errors[bad[0]]):
            return Bisection(self.metric, self.limit, errors[bad[0]], len(self.pipeline), runs, None)
        total = errors[bad[0]]
        while bad[0] - good[0] > 1:
            middle = (good[0] + bad[0]) // 2
            self.progress(runs, math.ceil(math.log2(len(self.pipeline))) + 1, str(self.pipeline[middle - 1]))
            tried = middle, self._after(good[1], good[0], middle)
            errors[middle] = self._error(self._outputs(tried[1]))
            good, bad = (good, tried) if self._wrong(errors[middle]) else (tried, bad)
            runs += 1
        guilty = self._value(good[1], bad[0], errors[good[0]], errors[bad[0]])
        return Bisection(self.metric, self.limit, total, len(self.pipeline), runs, guilty)

    def _after(self, module: Module, start: int, stop: int) -> Module:
        """A copy of what the first `start` passes made, after those up to `stop`."""
        twin = copy_module(module)
        for index, p in enumerate(self.pipeline[start:stop], start):
            keep_teacher(twin, p, self.pipeline[index + 1:], self.ctx)
            with suppress(NothingMatched):  # behind a wrong pass there may be nothing left for it
                run_pass(twin, p, self.ctx)
        return twin

    # --- the value within the pass ------------------------------------------------------------------------------------

    def _value(self, module: Module, place: int, error_before: float, error: float) -> Guilty:
        p = self.pipeline[place - 1]
        after = copy_module(module)
        done = Snapshot(after)
        run_pass(after, p, self.ctx)
        done.close()
        done.take_rows()
        before = done.before
        order = {r: i for i, op in enumerate(before.main.ops) for r in op.results}
        pairs = sorted({old: (old, new) for old, new in done.pairs() if old in order}.values(), key=lambda pair: order[pair[0]])
        self.fed = self._inputs(before) | self._inputs(after)
        low, high, runs, errors = 0, len(pairs), 0, {len(pairs): error}
        while high - low > 1:
            middle = (low + high) // 2
            self.progress(runs, math.ceil(math.log2(len(pairs))), repr(pairs[middle - 1][1]))
            errors[middle] = self._error(self._hybrid(before, after, pairs[:middle]))
            low, high = (low, middle) if self._wrong(errors[middle]) else (middle, high)
            runs += 1
        if not pairs:
            raise IngotError(f"{p} makes the model wrong, and leaves no value to compare")
        old, new = pairs[high - 1]
        a, b = (self.engine(extract(m, [v], _behind(m, [v], ()), {}), self.fed)[0] for m, v in ((before, old), (after, new)))
        found = find_difference(a, b, rtol=0.0)
        named = f"{names(after.main).get(new, new.hint)}: {new.type}"
        return Guilty(stage=str(p), place=place, error_before=error_before, error=error, value=named,
                      op_before=_line(before, old), op_after=_line(after, new), where=new.op.loc if new.op else None,
                      error_value=errors[high], difference=found.numbers if found else "itself it is right",
                      cuts=len(pairs), cut_runs=runs)

    def _hybrid(self, before: Module, after: Module, pairs: list[Pair]) -> list[np.ndarray]:
        """What `before` makes of the values that `after` computes for the given pairs."""
        taken = dict(pairs)
        wanted = [v for i, v in enumerate(before.main.returns) if i not in before.main.reuse]
        rest = _behind(before, wanted, taken)
        read = {v: taken[v] for v in (*wanted, *(v for op in rest for v in op.operands)) if v in taken}
        live = list(read.values())
        made = self.engine(extract(after, live, _behind(after, live, ()), {}), self.fed)
        cut = {f"cut{i}": array for i, array in enumerate(made)}
        return self.engine(extract(before, wanted, rest, dict(zip(read, cut))), {**self.fed, **cut})

    # --- running ------------------------------------------------------------------------------------------------------

    def _inputs(self, module: Module) -> dict[str, np.ndarray]:
        if "ids" in self.inputs and any(p.hint == "ids" for p in module.main.params):
            return prefill(module, self.inputs["ids"])
        unknown = [p.hint for p in module.main.params if p.hint not in self.inputs]
        if unknown:
            raise IngotError(f"a pass added the inputs {', '.join(f'%{n}' for n in unknown)}, which nothing is known about")
        return self.inputs

    def _outputs(self, module: Module) -> list[np.ndarray]:
        return outputs(module, self.engine(module, self._inputs(module)))

    def _error(self, got: list[np.ndarray]) -> float:
        reference = [self._rows(a, b) for a, b in zip(self.reference, got)]
        if any(a.shape != b.shape for a, b in zip(reference, got)):
            return math.inf
        if self.metric == "max-abs":
            return max((_greatest(a, b) for a, b in zip(reference, got)), default=0.0)
        found = measured(reference, got, logits=has_logits(self.traced) or self.metric in ("kl", "top1"))
        return found.get(self.metric, 0.0 if self.metric == "top1" else math.inf)

    def _rows(self, full: np.ndarray, got: np.ndarray) -> np.ndarray:
        """The rows of the traced model's output that a module computes which is asked for some alone."""
        if full.shape == got.shape or "ids" not in self.inputs or full.ndim < 2 or full.shape[1] <= got.shape[1]:
            return full
        tokens = self.inputs["ids"].shape[1]
        return full[:, np.unique(np.linspace(0, tokens - 1, got.shape[1]).round().astype(np.int64))]

    def _wrong(self, error: float) -> bool:
        return not (error >= self.limit if self.metric == "top1" else error <= self.limit)


def _behind(module: Module, values: list[Value], taken: Container[Value]) -> list[Op]:
    """The ops that values are computed by, back to those `taken` from elsewhere."""
    needed = {v for v in values if v not in taken}
    ops: list[Op] = []
    for op in reversed(module.main.ops):
        if any(r in needed for r in op.results):
            ops.append(op)
            needed.update(v for v in op.operands if v not in taken)
    return ops


def _greatest(a: np.ndarray, b: np.ndarray) -> float:
    off = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))


def _line(module: Module, value: Value) -> str:
    return print_op(value.op, names(module.main)) if value.op is not None else repr(value)
