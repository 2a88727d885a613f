"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.errors import GenerateError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]


_CHECKS: tuple[tuple[str, type, Callable[[Any], bool], str], ...] = (
    ("repetition_penalty", Real, lambda x: x > 0, "more than 0"),
    ("temperature", Real, lambda x: x >= 0, "0 or more"),
    ("top_k", Integral, lambda x: x >= 0, "a whole number, 0 or more"),
    ("top_p", Real, lambda x: 0 < x <= 1, "more than 0 and at most 1"),
    ("min_p", Real, lambda x: 0 <= x <= 1, "between 0 and 1"),
    ("seed", Integral, lambda x: x >= 0, "a whole number, 0 or more"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen. The filters mean what they mean in transformers and apply in the order listed."""

    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the row (prompt included); 1 is off."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy: the largest logit, no randomness."""
    top_k: int = 0
    """Keep the k likeliest tokens (and ties with the last of them); 0 is off."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens that together reach this probability; 1 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this times the likeliest; 0 is off."""
    seed: int | None = None
    """Row i draws from a generator seeded with seed + i; None draws differently every time."""

    def __post_init__(self) -> None:
        for name, kind, fine, wanted in _CHECKS:
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not fine(value):
                raise GenerateError(f"{name} must be {wanted}, not {value!r}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen; so it is at temperatures that float32 takes for 0."""
        return float(np.float32(self.temperature)) == 0 or self.top_k == 1


class Sampler:
    """Chooses one token per row and step. Rows are independent: each has its own generator and its own history."""

    def __init__(self, options: SamplingOptions, *, rows: int) -> None:
        """rows: how many rows there are; row i is seeded with `options.seed + i`."""
        self.options = options
        seeds: Iterable[Any] = [None] * rows if options.seed is None else range(options.seed, options.seed + rows)
        self._generators = [np.random.default_rng(seed) for seed in seeds]
        self._seen: list[set[int]] = [set() for _ in range(rows)]

    def observe(self, row: int, ids: Iterable[int]) -> None:
        """Adds tokens to a row's history, which the repetition penalty looks at."""
        if self.options.repetition_penalty != 1:
            self._seen[row].update(int(token) for token in ids)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order."""
        self._generators = [self._generators[row] for row in rows]
        self._seen = [self._seen[row] for row in rows]

    def draws(self) -> NDArray[np.float64]:
        """A number in [0, 1) for every row, f64[B], where another than `choose` draws by it."""
        return np.array([generator.random() for generator in self._generators])

    def choose(self, logits: Floats) -> Ids:
        """The next token of every row, i64[B], from logits f32[B, V], which are left as they are."""
        if self.options.greedy and self.options.repetition_penalty == 1:
            chosen: Ids = logits.argmax(axis=1).astype(np.int64)
            return chosen
        chosen = np.empty(len(logits), np.int64)
        for row, scores in enumerate(logits):
            chosen[row] = self._choose_row(row, scores)
            self.observe(row, (int(chosen[row]),))
        return chosen

    def _choose_row(self, row: int, scores: Floats) -> int:
        scores = penalise(scores, self._seen[row], self.options.repetition_penalty)
        if self.options.greedy:
            return int(scores.argmax())
        tokens, probabilities = candidates(scores, self.options)
        # A draw in [0, 1) against the running sum; the last sum may round below 1, hence the minimum.
        place = np.searchsorted(probabilities.cumsum(), self._generators[row].random(), side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])


def penalise(scores: Floats, seen: set[int], penalty: float) -> Floats:
    """`scores` f32[V] with the repetition penalty on the tokens in `seen`; the same array when there is nothing to do."""
    known = np.fromiter((token for token in seen if token < len(scores)), np.int64)
    if penalty == 1 or not len(known):
        return scores
    scores = scores.copy()
    before = scores[known]
    scores[known] = np.where(before < 0, before * penalty, before / penalty)
    return scores


def candidates(scores: Floats, options: SamplingOptions) -> tuple[Ids, Probabilities]:
    """The tokens that pass top_k, top_p and min_p, i64[n], and their probabilities, f64[n] with sum 1.

    scores: logits f32[V], before temperature, which must not be 0. Tokens come likeliest first if top_p is on.
    """
    tokens: Ids = np.arange(len(scores))
    if 0 < options.top_k < len(scores):
        tokens = np.flatnonzero(scores >= np.partition(scores, -options.top_k)[-options.top_k])
        scores = scores[tokens]
    # Over a whole vocabulary float32 is twice as fast, and exact enough: every term is within 1e-6 of itself.
    weights = np.exp((scores - scores.max()) / np.float32(options.temperature))
    if options.top_p < 1:
        kept = _nucleus(weights, options.top_p * float(weights.sum(dtype=np.float64)))
        tokens, weights = tokens[kept], weights[kept]
    if options.min_p > 0:
        likely = weights >= options.min_p * weights.max()
        tokens, weights = tokens[likely], weights[likely]
    probabilities = weights.astype(np.float64)
    return tokens, probabilities / probabilities.sum()


def _nucleus(weights: Floats, mass: float) -> Ids:
    """Indices of the fewest largest weights that reach `mass`, largest first.

    Sorts only as many of the largest as it turns out to need: usually a few dozen of a whole vocabulary.
    """
    count = 64
    while True:
        count = min(count, len(weights))
        largest = np.argpartition(weights, -count)[-count:]
        largest = largest[np.lexsort((largest, -weights[largest]))]
        reached = weights[largest].cumsum(dtype=np.float64)
        if reached[-1] >= mass or count == len(weights):
            return largest[: int(np.searchsorted(reached, mass)) + 1]
        count *= 8
