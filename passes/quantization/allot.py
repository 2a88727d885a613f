"""Giving each of several things one of its choices, so that the loss of all together is small within a budget of bits."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
C = TypeVar("C")


@dataclass(frozen=True)
class Choice(Generic[C]):
    """What a thing may become. bits: what that takes; loss: what that costs."""

    what: C
    bits: int
    loss: float


def allot(choices: Mapping[T, Sequence[Choice[C]]], bits: float) -> dict[T, Choice[C]] | None:
    """A choice for everything, of at most `bits` together; None where even the smallest take more.

    Greedy: everything starts with its smallest choice, then whatever upgrade gains most per bit comes first. That is the
    multiple-choice knapsack with fractions (Sinha and Zoltners 1979, Operations Research 27(3)), less the last fraction.
    """
    ladders = {thing: ladder(given) for thing, given in choices.items()}
    chosen = {thing: steps[0] for thing, steps in ladders.items()}
    left = bits - sum(choice.bits for choice in chosen.values())
    if left < 0:
        return None
    order = {thing: i for i, thing in enumerate(ladders)}
    heap = [(-_gain(steps[0], steps[1]), order[thing], 1, thing) for thing, steps in ladders.items() if len(steps) > 1]
    heapq.heapify(heap)
    while heap:
        _, _, at, thing = heapq.heappop(heap)
        steps = ladders[thing]
        more = steps[at].bits - chosen[thing].bits
        if more <= left:
            chosen[thing] = steps[at]
            left -= more
            if at + 1 < len(steps):
                heapq.heappush(heap, (-_gain(steps[at], steps[at + 1]), order[thing], at + 1, thing))
    return chosen


def ladder(choices: Sequence[Choice[C]]) -> list[Choice[C]]:
    """The choices on the lower convex hull of loss over bits, smallest first: each gains less per bit than the one before."""
    steps: list[Choice[C]] = []
    for choice in sorted(choices, key=lambda c: (c.bits, c.loss)):
        if steps and choice.loss >= steps[-1].loss:
            continue
        while len(steps) > 1 and _gain(steps[-1], choice) >= _gain(steps[-2], steps[-1]):
            steps.pop()
        steps.append(choice)
    return steps


def _gain(less: Choice[C], more: Choice[C]) -> float:
    return (less.loss - more.loss) / (more.bits - less.bits)
