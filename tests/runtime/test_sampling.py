"""The filters keep what transformers' keep, with the same probabilities; draws are seeded per row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ingot.errors import GenerateError
from ingot.runtime.sampling import Sampler, SamplingOptions, candidates, penalise


def expected(scores: np.ndarray, seen: list[int], options: SamplingOptions) -> np.ndarray:
    """Probabilities f64[V] by transformers, its processors in the order its generate() applies them."""
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
                                 TemperatureLogitsWarper(float(options.temperature))])
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(MinPLogitsWarper(options.min_p))
    out = chain(torch.tensor([seen]), torch.tensor(scores, dtype=torch.float64)[None])
    return torch.softmax(out, -1)[0].numpy()


def ours(scores: np.ndarray, seen: list[int], options: SamplingOptions) -> np.ndarray:
    tokens, probabilities = candidates(penalise(scores, set(seen), options.repetition_penalty), options)
    dense = np.zeros(len(scores))
    dense[tokens] = probabilities
    return dense


@given(seed=st.integers(0, 10**6), size=st.sampled_from([5, 300, 2000]), spread=st.sampled_from([0.1, 1.0, 4.0]),
       temperature=st.sampled_from([0.3, 1.0, 1.7]), top_k=st.sampled_from([0, 1, 3, 50, 5000]),
       top_p=st.sampled_from([1.0, 0.999, 0.9, 0.35, 0.01]), min_p=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
       penalty=st.sampled_from([1.0, 1.3, 0.7]))
@settings(max_examples=150, deadline=None)
def test_the_filters_are_those_of_transformers(seed: int, size: int, spread: float, temperature: float, top_k: int,
                                               top_p: float, min_p: float, penalty: float) -> None:
    random = np.random.default_rng(seed)
    scores = (random.standard_normal(size) * spread).astype(np.float32)
    seen = random.integers(0, size, 7).tolist()
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    np.testing.assert_allclose(ours(scores, seen, options), expected(scores, seen, options), rtol=1e-5, atol=1e-9)


def test_ties_with_the_last_of_top_k_stay() -> None:
    scores = np.array([1, 3, 2, 2, 2, 0], np.float32)
    options = SamplingOptions(top_k=2)
    np.testing.assert_allclose(ours(scores, [5], options), expected(scores, [5], options))


def test_a_flat_distribution_needs_more_than_the_first_few_to_reach_top_p() -> None:
    tokens, _ = candidates(np.zeros(5000, np.float32), SamplingOptions(top_p=0.5))
    assert len(tokens) == 2500


def test_greedy_takes_the_largest_and_draws_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    for options in (SamplingOptions(temperature=0), SamplingOptions(top_k=1)):
        np.testing.assert_array_equal(Sampler(options, rows=3).choose(logits), logits.argmax(1))


def test_greedy_with_a_repetition_penalty_leaves_what_it_has_said() -> None:
    sampler = Sampler(SamplingOptions(temperature=0, repetition_penalty=10), rows=1)
    logits = np.array([[1.0, 3.0, 2.0, -1.0]], np.float32)
    sampler.observe(0, [1])
    assert [int(sampler.choose(logits)[0]) for _ in range(3)] == [2, 0, 1]
    assert logits.tolist() == [[1.0, 3.0, 2.0, -1.0]]


def test_row_i_draws_as_if_alone_with_seed_plus_i() -> None:
    logits = np.random.default_rng(1).standard_normal((20, 3, 40)).astype(np.float32)
    together = Sampler(SamplingOptions(seed=5), rows=3)
    alone = [Sampler(SamplingOptions(seed=5 + row), rows=1) for row in range(3)]
    for scores in logits:
        assert together.choose(scores).tolist() == [int(alone[row].choose(scores[row : row + 1])[0]) for row in range(3)]


def test_selected_rows_keep_their_generators() -> None:
    logits = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    one, two = (Sampler(SamplingOptions(seed=5, repetition_penalty=1.1), rows=3) for _ in range(2))
    one.select([2, 0])
    assert one.choose(logits[[2, 0]]).tolist() == two.choose(logits)[[2, 0]].tolist()


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32)).repeat(1, 0)
    sampler = Sampler(SamplingOptions(seed=0), rows=1)
    counts = np.bincount([int(sampler.choose(logits)[0]) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)  # about four standard deviations


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.5), ("repetition_penalty", 0.0),
    ("seed", -1)])
def test_impossible_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(GenerateError, match=f"{field} must be"):
        SamplingOptions(**{field: value})
