"""Dividing heads into groups of equal size, those together that lose least by it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

EXHAUSTIVE = 20_000
"""Up to how many ways of dividing all are looked at."""

Groups = tuple[tuple[int, ...], ...]


def neighbours(heads: int, count: int) -> Groups:
    """`count` groups of heads that stand together."""
    size = heads // count
    return tuple(tuple(range(i * size, (i + 1) * size)) for i in range(count))


def divided(costs: np.ndarray, count: int) -> Groups:
    """The division into `count` groups of equal size of least total cost, each sorted, in order of their first heads.

    costs: what two heads lose by being together, f[n, n], symmetric; a group costs the sum over its pairs. All divisions are
    tried where there are at most `EXHAUSTIVE`; else heads are exchanged between groups, beginning with neighbours, as long as
    an exchange makes the total less (as Kernighan and Lin 1970).
    """
    heads = len(costs)
    size = heads // count
    ways = math.factorial(heads) // (math.factorial(size) ** count * math.factorial(count))
    if ways <= EXHAUSTIVE:
        return min(_all(tuple(range(heads)), size), key=lambda groups: (round(_total(costs, groups), 12), groups))
    group = np.repeat(np.arange(count), size)
    while True:
        joined = costs @ np.eye(count)[group]  # what each head has to do with each group
        own = joined[np.arange(heads), group]
        gain = own[:, None] - joined[:, group] + own[None] - joined[:, group].T + 2 * costs
        gain[group[:, None] == group[None]] = -np.inf
        a, b = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[a, b] <= 1e-9 * costs.max():
            return tuple(sorted(tuple(np.flatnonzero(group == g).tolist()) for g in range(count)))
        group[a], group[b] = group[b], group[a]


def _all(left: tuple[int, ...], size: int) -> Iterator[Groups]:
    if not left:
        yield ()
        return
    first, rest = left[0], left[1:]
    for others in itertools.combinations(rest, size - 1):
        remaining = tuple(h for h in rest if h not in others)
        for groups in _all(remaining, size):
            yield ((first, *others), *groups)


def _total(costs: np.ndarray, groups: Groups) -> float:
    return sum(float(costs[a, b]) for group in groups for i, a in enumerate(group) for b in group[i + 1:])
