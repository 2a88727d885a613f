"""In which order the units of a group go, and what that costs; and how many go from each group."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ingot.passes.pruning.elimination import Elimination, Reader
from ingot.passes.pruning.groups import Group

STEPS = 48
"""Steps in which all units of a large group would go."""


@dataclass(frozen=True)
class Ranking:
    """steps: units that go together, the first ones first; losses: what each step costs, f64[steps]."""

    steps: list[np.ndarray]
    losses: np.ndarray


def by_score(scores: np.ndarray, *, blocks: int = 1) -> Ranking:
    """Units from the least score f64[size] on; from each block as many."""
    runs = scores.reshape(blocks, -1)
    order = np.argsort(runs, 1, kind="stable")
    base = np.arange(blocks) * runs.shape[1]
    return Ranking([base + order[:, i] for i in range(runs.shape[1])], np.take_along_axis(runs, order, 1).sum(0))


def by_elimination(readers: list[Reader], size: int, *, blocks: int = 1, deepest: float = 0.9) -> Ranking:
    """Units in the order in which they cost least, the others refitted after every step.

    Of many units, a few go in one step. deepest: part of the units up to which the order is looked for.
    """
    state = Elimination(readers, size)
    steps: list[np.ndarray] = []
    losses: list[float] = []
    base = np.arange(blocks)[:, None] * (size // blocks)
    together = max(size // blocks // STEPS, 1)
    while state.left.sum() > max((1 - deepest) * size, blocks):
        costs = state.costs().reshape(blocks, -1)
        count = min(together, int(state.left.sum()) // blocks - 1)
        units = (base + np.argsort(costs, 1, kind="stable")[:, :count]).T
        lost = state.remove(units.reshape(-1))
        steps += list(units)
        losses += [lost / count] * count
    return Ranking(steps, np.asarray(losses))


def allocate(rankings: Mapping[Group, Ranking], *, ratio: float, multiple: int, uniform: bool) -> dict[Group, int]:
    """How many steps to go in each group so that `ratio` of all their parameters goes.

    multiple: what the number of channels left in a block is a multiple of (heads may be any number). uniform: the same ratio
    for every group; otherwise whatever costs least for each parameter goes first. At least one step stays everywhere.
    """
    if uniform:
        return {group: _steps(group, multiple, ratio, len(ranking.steps)) for group, ranking in rankings.items()}
    costs = {group: group.cost for group in rankings}
    wanted = ratio * sum(cost * group.size for group, cost in costs.items())
    taken = dict.fromkeys(rankings, 0)
    queue: list[tuple[float, int, Group, int]] = []
    turn = itertools.count()

    def push(group: Group) -> None:
        ranking, done = rankings[group], taken[group]
        left = group.size // group.blocks - done
        grain = multiple if group.kind not in ("heads", "kv") else 1
        count = left - grain * ((left - 1) // grain)
        if left - count >= 1 and done + count <= len(ranking.steps):
            loss = float(ranking.losses[done:done + count].sum()) / (count * group.blocks * costs[group])
            heapq.heappush(queue, (loss, next(turn), group, count))

    for group in rankings:
        push(group)
    while queue:
        _, _, group, count = heapq.heappop(queue)
        size = count * group.blocks * costs[group]
        if size > 2 * wanted:
            continue
        taken[group] += count
        wanted -= size
        push(group)
    return taken


def _steps(group: Group, multiple: int, ratio: float, most: int) -> int:
    width = group.size // group.blocks
    grain = multiple if group.kind not in ("heads", "kv") else 1
    least = max(-(-(width - most) // grain) * grain, grain)
    left = max(round(width * (1 - ratio) / grain) * grain, least)
    return max(width - left, 0)
