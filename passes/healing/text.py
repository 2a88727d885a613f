"""What a student learns on, and what is kept from it to judge it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingot.errors import PassError

HELD_OUT = 1024
"""Tokens, or somewhat less, that are kept back."""


@dataclass(frozen=True)
class Text:
    """Pieces of one length. learned, held_out: token ids i64[n, length]."""

    learned: np.ndarray
    held_out: np.ndarray

    def batch(self, step: int, *, count: int, seed: int) -> np.ndarray:
        """The `count` pieces of a step, i64[count, length]: all pieces in an order of their own for every round."""
        size = len(self.learned)
        places = range(step * count, (step + 1) * count)
        orders = {r: np.random.default_rng([seed, r]).permutation(size) for r in {place // size for place in places}}
        return self.learned[[orders[place // size][place % size] for place in places]]


def divided(batches: Sequence[np.ndarray], *, length: int) -> Text:
    """Calibration batches i64[n, s] in pieces of `length` tokens (of the longest sequence, where none is as long).

    Of up to every eighth sequence, evenly spread, the beginning is kept back and the rest left out; of a single sequence its
    last piece. Raises PassError where there are not two pieces.
    """
    rows = [row for ids in batches for row in np.asarray(ids, np.int64)]
    length = min(length, max((len(row) for row in rows), default=0))
    cut = [row[:len(row) - len(row) % length].reshape(-1, length) for row in rows if len(row) >= length > 1]
    if sum(map(len, cut)) < 2:
        raise PassError("there is too little calibration text to learn from and to judge by", hint="give more with --calib")
    if len(cut) == 1:
        return Text(cut[0][:-1], cut[0][-1:])
    count = max(1, min(HELD_OUT // length, len(cut) // 8))
    kept = set(((np.arange(count) + 0.5) * len(cut) / count).astype(int))
    return Text(np.concatenate([p for i, p in enumerate(cut) if i not in kept]), np.stack([cut[i][0] for i in sorted(kept)]))
