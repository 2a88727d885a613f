"""Tokens chosen by kernels are those the runtime's sampler would choose from."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ingot.backends.triton import sampling
from ingot.backends.triton.sampling import Choice, choose
from ingot.runtime.sampling import SamplingOptions, candidates

LOGITS = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32) * 3


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with patch.object(sampling, "BLOCK", 256):
        yield


def test_greedy_takes_the_first_of_the_greatest() -> None:
    logits = LOGITS.copy()
    logits[1, [7, 250]] = 50.0
    assert choose(torch.from_numpy(logits), Choice()).tolist() == logits.argmax(1).tolist()
    assert choose(torch.from_numpy(logits).bfloat16(), Choice()).tolist()[1] == 7


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"temperature": 0.5, "top_p": 0.9},
                                     {"top_k": 20, "top_p": 0.6, "min_p": 0.01}, {"top_k": 1}])
def test_draws_follow_the_same_distribution(options: dict[str, float]) -> None:
    """A draw u falls on the token where the running probability, in order of tokens, passes u."""
    given = {"temperature": 1.0, **options}
    wanted = SamplingOptions(**given)  # type: ignore[arg-type]
    draws = (0.0, 0.3, 0.77)
    got = choose(torch.from_numpy(LOGITS), Choice(**given), uniform=torch.tensor(draws))  # type: ignore[arg-type]
    for row, (u, token) in enumerate(zip(draws, got.tolist())):
        tokens, probabilities = candidates(LOGITS[row], wanted)
        order = np.argsort(tokens)
        place = int(np.searchsorted(probabilities[order].cumsum(), u, side="right"))
        assert token == tokens[order][place]


def test_ties_with_the_last_kept_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, -1.0]])
    found = choose(logits.repeat(4, 1), Choice(temperature=1.0, top_k=1), uniform=torch.tensor([0.0, 0.4, 0.6, 0.9]))
    assert found.tolist() == [1, 1, 2, 2]
