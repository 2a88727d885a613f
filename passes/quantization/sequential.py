"""Quantising linears one input after the other in graph order, each on what the text shows behind those already rounded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ingot.errors import IRError, PassError
from ingot.ir.copy import copied
from ingot.ir.formats import Format
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight
from ingot.passes.base import Context
from ingot.passes.calibration.moments import Moments, gather
from ingot.passes.calibration.track import Track
from ingot.passes.quantization.gptq import Feedback, feedback, gptq
from ingot.passes.quantization.scheme import Scheme
from ingot.passes.stored import stored

RIDGE = 0.2
"""Part of the mean moment that keeps a weight that compensates near the original."""


def quantize_in_order(module: Module, sites: Mapping[Const, Scheme], ctx: Context, *, compensate: bool,
                      made_by: str) -> dict[str, Any]:
    """Quantise weights of linears of the main func by GPTQ, in place; returns statistics for the receipt.

    compensate: let every weight also make good, as far as a linear map can, what rounding before it has done to its input and
    to the residual sum its result goes to. Memory: the live values of all calibration batches (twice with `compensate`) and
    the weights of one stretch of ops; codes lie in a temporary file. Codes that the journal of an interrupted run holds are
    taken from there, and everything behind them is computed as if they were new. Raises PassError, naming the weight, where
    its input is not finite, or where its codes lose more than zeros would.
    """
    journal = ctx.journal.section(module, ctx.stage, ctx.calibration)
    lost: dict[str, float] = {}
    dead: dict[str, int] = {}
    resumed = 0
    for consts, readers, moments in measured_in_order(module, sites, ctx, compensate=compensate):
        how: dict[int, Feedback] = {}
        for const in consts:
            users = [reader for reader in readers if reader.w is const]
            made = journal.read(const.name, sites[const].types_of(const))
            resumed += made is not None
            if made is None:
                made = _made(const, users[0], sites[const], moments(), how)
                journal.write(const.name, *made)
            parts, facts = made
            lost[const.name] = facts["lost"]
            if facts["dead"]:
                dead[consts[0].name] = facts["dead"]
            sites[const].place(module.main, const, users, held(const, parts, sites[const].format, made_by=made_by))
            ctx.step(len(lost), len(sites), f"{const.name} lost {facts['lost']:.2g}")
    worst = max(lost, key=lost.__getitem__)
    found = {"lost": {"mean": float(np.mean(list(lost.values()))), "worst": lost[worst], "weight": worst},
             "dead_inputs": sum(dead.values()), "sites": [{"name": name, "error": part} for name, part in lost.items()]}
    return found | ({"dead": dead} if dead else {}) | ({"resumed": resumed} if resumed else {})


def measured_in_order(module: Module, consts: Collection[Const], ctx: Context, *, compensate: bool,
                      ) -> Iterator[tuple[list[Const], list[Linear], Callable[[], Moments]]]:
    """The weights of linears of the main func by what these read, in graph order: (weights, linears, what gives the moments).

    The module is run up to each stop, with what has been done to it by then; compensate: the original beside it. Moments are
    gathered when they are first asked for, which must be before the next stop.
    """
    track = Track(module, ctx.calibration)
    original, twins = None, dict[Value, Value]()
    if compensate:
        twin, twins = copied(module)
        original = Track(twin, ctx.calibration)
    done = 0
    for x, readers in by_input(module.main, consts).items():
        behind = list(dict.fromkeys(reader.w for reader in readers if isinstance(reader.w, Const)))
        ctx.step(done, len(consts), behind[0].name)
        track.advance(readers[0])
        if original is not None and (stop := twins[readers[0].result].op) is not None:
            original.advance(stop)

        @cache
        def moments(x: Value = x, readers: Sequence[Linear] = tuple(readers)) -> Moments:
            return gather(x, readers, track, original, twins)

        yield behind, readers, moments
        done += len(behind)


def in_order(module: Module, consts: Collection[Const]) -> list[Const]:
    """Those of the weights that `quantize_in_order` can take: used by linears of the main func alone, which read one value."""
    found = by_input(module.main, consts)
    readers: dict[Op, Value] = {reader: x for x, linears in found.items() for reader in linears}
    inputs = {const: {readers.get(user) for user in const.users} for const in consts}
    return [const for const in consts if len(inputs[const]) == 1 and None not in inputs[const]]


def by_input(func: Func, consts: Collection[Const]) -> dict[Value, list[Linear]]:
    """The linears with these weights by the value they read, in the order of the first of each."""
    found: dict[Value, list[Linear]] = {}
    for op in func.ops:
        if isinstance(op, Linear) and op.w in consts:
            found.setdefault(op.x, []).append(op)
    return found


def _made(const: Const, linear: Linear, scheme: Scheme, moments: Moments,
          how: dict[int, Feedback]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The codes of a weight with their scales, the part of what it computes that they lose, and its inputs that are always zero.

    how: feedback by size of groups. Raises PassError where there is no such.
    """
    try:
        parts, facts = _coded(const, linear, scheme, moments, how)
    except IRError as error:
        raise PassError(error.message, where=f"@{const.name}", hint=error.hint) from None
    if not facts["lost"] < 1:
        raise PassError(f"the codes lose {facts['lost']:.3g} of what it computes", where=f"@{const.name}",
                        hint="take a format of more bits, or skip it")
    return parts, facts


def _coded(const: Const, linear: Linear, scheme: Scheme, moments: Moments,
           how: dict[int, Feedback]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    w = const.weight.materialize().astype(np.float32)
    group = scheme.width(w.shape[1])
    if group not in how:
        how[group] = feedback(moments.second, group=group)
    target = moments.target(linear, w, ridge=RIDGE)
    coded = gptq(target, scheme.format, how[group], symmetric=scheme.symmetric)
    error = target - coded.decoded()
    size = float(np.vdot(target @ moments.second, target))
    lost = float(np.vdot(error @ moments.second, error)) / size if size else 0.0
    return coded.parts, {"lost": lost, "dead": how[group].dead}


def held(const: Const, parts: Mapping[str, np.ndarray], fmt: Format, *, made_by: str) -> dict[str, Weight]:
    """The operands of `dequantize` as weights whose numbers lie in temporary files."""
    return {part: stored(f"{const.name}.{part}", array, made_by, fmt.code if part in ("packed", "zero") else None)
            for part, array in parts.items()}
