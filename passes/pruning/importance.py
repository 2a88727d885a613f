"""Which units of groups matter least: by weights alone, by weights and inputs, by gradients, or by what a refit leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const
from ingot.passes.base import Context
from ingot.passes.calibration.calibrate import inputs_for
from ingot.passes.pruning.elimination import Reader
from ingot.passes.pruning.evidence import Evidence, gathered
from ingot.passes.pruning.groups import Group
from ingot.passes.pruning.ranking import Ranking, by_elimination, by_score

IMPORTANCES = ("obs", "wanda", "flap", "taylor", "magnitude")
MANY = 4
"""Linears that read a group beyond which units are not eliminated one by one, but ranked by wanda."""


def rankings(module: Module, chosen: Sequence[Group], ctx: Context, *, importance: str,
             level: bool) -> dict[Group, Ranking]:
    """In which order the units of each group go.

    magnitude: the sum of squares of everything that goes with a unit. taylor: the sum of |w dL/dw| over it (Molchanov et al.
    2019, arXiv 1906.10771, section 3.1; LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, section 3.2), L the loss of predicting
    the next token. wanda: |w| times the norm of the input, summed over the columns that read the unit (Sun et al. 2023, arXiv
    2306.11695; for structures: An et al. 2023, arXiv 2312.11983, "Wanda-sp"). flap: the variance of the input times the squared
    norm of the column (An et al., equation 4), of mean 0 and deviation 1 in a layer, so that layers compare; the mean over the
    columns of a unit. obs: what is lost when the other columns are refitted (see `elimination`); groups with more than a few
    readers are ranked by wanda. level: see `evidence.gathered`.
    Raises PassError for a group that no linear reads, where inputs are asked for.
    """
    if importance == "magnitude":
        return {group: by_score(_summed(group, {c: np.square(_wide(c)) for c, _ in group.members}), blocks=group.blocks)
                for group in chosen}
    if importance == "taylor":
        slopes = gradients(module, list(dict.fromkeys(c for group in chosen for c, _ in group.members)), ctx)
        return {group: by_score(_summed(group, {c: np.abs(_wide(c) * slopes[c]) for c, _ in group.members}), blocks=group.blocks)
                for group in chosen}
    readers: dict[Linear, list[Group]] = {}
    for group in chosen:
        if not group.consumers:
            raise PassError(f"no linear reads the {group.kind} channels of @{group.name}",
                            hint="rank them by importance=magnitude, with repair=none")
        for linear in group.consumers:
            readers.setdefault(linear, []).append(group)
    waiting: dict[Group, list[Reader]] = {}
    scores: dict[Group, np.ndarray] = {}
    found: dict[Group, Ranking] = {}
    for linear, evidence in gathered(module, list(readers), ctx, level=level):
        for group in readers[linear]:
            assert isinstance(linear.w, Const)
            units, w = group.members[linear.w, 1], _wide(linear.w)
            if importance == "obs" and len(group.consumers) <= MANY:
                waiting.setdefault(group, []).append(Reader(w, evidence.second * evidence.energy, units))
                if len(waiting[group]) == len(group.consumers):
                    found[group] = by_elimination(waiting.pop(group), group.size, blocks=group.blocks)
                continue
            held = units >= 0
            columns = (_fluctuation(w, evidence) * group.cost / np.bincount(units[held], minlength=group.size)[units]
                       if importance == "flap" else np.abs(w).sum(0) * np.sqrt(evidence.second.diagonal() * evidence.energy))
            scores[group] = scores.get(group, np.zeros(group.size)) + np.bincount(units[held], columns[held], group.size)
    return found | {group: by_score(score, blocks=group.blocks) for group, score in scores.items()}


def _fluctuation(w: np.ndarray, evidence: Evidence) -> np.ndarray:
    """FLAP's score of each column of a weight, of mean 0 and deviation 1."""
    score = np.square(w).sum(0) * evidence.variance
    return np.asarray((score - score.mean()) / max(float(score.std()), float(np.finfo(np.float32).tiny)))


def _summed(group: Group, values: dict[Const, np.ndarray]) -> np.ndarray:
    """The sum of non-negative numbers over all that goes with each unit, f64[size]."""
    total = np.zeros(group.size)
    for (const, axis), units in group.members.items():
        each = np.moveaxis(values[const], axis, 0).reshape(len(units), -1).sum(1)
        total += np.bincount(units[units >= 0], each[units >= 0], group.size)
    return total


def _wide(const: Const) -> np.ndarray:
    return const.weight.materialize().astype(np.float32)


def gradients(module: Module, consts: Sequence[Const], ctx: Context) -> dict[Const, np.ndarray]:
    """The gradient of the mean loss of predicting the next token of the calibration text, f32 like each weight.

    Memory: all the weights and their gradients, and what one batch leaves for the backward pass.
    """
    import torch

    from ingot.backends.torch.executor import Executor

    params = {c.name: torch.from_numpy(np.array(_wide(c))).requires_grad_() for c in consts}
    executor = Executor(module, params=params, keep=True)
    for done, ids in enumerate(ctx.calibration):
        ctx.step(done, len(ctx.calibration), "gradients")
        logits = executor.run(inputs_for(module, np.asarray(ids, np.int64), all_logits=True))[0]
        following = torch.from_numpy(np.asarray(ids, np.int64)[:, 1:])
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), following.flatten())
        torch.autograd.backward(loss / len(ctx.calibration))
    return {c: np.zeros(c.type.shape, np.float32) if (g := params[c.name].grad) is None else g.numpy() for c in consts}
