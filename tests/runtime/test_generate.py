"""Generation: rows are independent, every way to stop works, the stream is the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ingot.errors import GenerateError
from ingot.runtime.generate import GenerateOptions, Generation, generate, stream
from ingot.runtime.sampling import SamplingOptions
from ingot.runtime.session import Session
from ingot.runtime.tokenizer import Tokenizer

PROMPTS = ["the quick", "pack my box with five", "größere", "t"]
FREE = GenerateOptions(max_new_tokens=40)
SAMPLED = GenerateOptions(max_new_tokens=30, sampling=SamplingOptions(temperature=1.2, top_p=0.9, seed=3, repetition_penalty=1.2))


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    """By whole forwards, the slow and obvious way."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(session.logits([ids])[0, -1].argmax()))
    return ids[len(prompt):]


def test_greedy_generation_is_repeated_full_forwards(session: Session, tokenizer: Tokenizer) -> None:
    result = generate(session, tokenizer, ["the quick"], FREE).results[0]
    assert list(result.ids) == greedy(session, tokenizer.encode("the quick"), 40)
    assert result.finish_reason == "length"
    assert result.prompt_tokens == len(tokenizer.encode("the quick"))


def test_a_row_in_a_batch_is_that_row_alone(session: Session, tokenizer: Tokenizer) -> None:
    together = generate(session, tokenizer, PROMPTS, FREE).results
    assert together == [generate(session, tokenizer, [prompt], FREE).results[0] for prompt in PROMPTS]


def test_rows_that_end_early_do_not_disturb_the_others(session: Session, tokenizer: Tokenizer) -> None:
    """Every row gets a stop of its own at another step, so that rows are held and the batch shrinks on the way."""
    alone = [generate(session, tokenizer, [prompt], FREE).results[0].ids for prompt in PROMPTS]
    stops = frozenset({alone[0][4], alone[1][11], alone[2][17]})
    options = GenerateOptions(max_new_tokens=40, stop_ids=stops)
    results = generate(session, tokenizer, PROMPTS, options).results
    assert len({len(result.ids) for result in results}) > 2
    for ids, result in zip(alone, results, strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), 40)
        assert result.ids == ids[:end]
        assert result.finish_reason == ("stop" if ids[end - 1] in stops else "length")


def test_seeded_sampling_repeats_and_row_i_alone_takes_seed_plus_i(session: Session, tokenizer: Tokenizer) -> None:
    together = generate(session, tokenizer, PROMPTS, SAMPLED).results
    assert together == generate(session, tokenizer, PROMPTS, SAMPLED).results
    for row, prompt in enumerate(PROMPTS):
        options = GenerateOptions(max_new_tokens=30, sampling=SamplingOptions(
            temperature=1.2, top_p=0.9, seed=3 + row, repetition_penalty=1.2))
        assert generate(session, tokenizer, [prompt], options).results == [together[row]]


def test_the_stream_is_the_result(session: Session, tokenizer: Tokenizer) -> None:
    generation = stream(session, tokenizer, PROMPTS, SAMPLED)
    pieces = list(generation)
    for row, result in enumerate(generation.results):
        mine = [piece for piece in pieces if piece.row == row]
        assert tuple(piece.token for piece in mine) == result.ids
        assert "".join(piece.text for piece in mine) == result.text
        prompt = tokenizer.encode(PROMPTS[row])
        assert tokenizer.decode(prompt) + result.text == tokenizer.decode([*prompt, *result.ids])


def test_a_stop_string_ends_the_row_and_does_not_show(session: Session, tokenizer: Tokenizer) -> None:
    text = generate(session, tokenizer, ["the quick"], SAMPLED).results[0].text
    stop = text[9:13]
    options = GenerateOptions(max_new_tokens=30, sampling=SAMPLED.sampling, stop=(stop,))
    generation = stream(session, tokenizer, ["the quick"], options)
    shown = "".join(piece.text for piece in generation)
    assert shown == generation.results[0].text == text[: text.index(stop)]
    assert generation.results[0].finish_reason == "stop"


def test_a_full_context_ends_the_row(session: Session, tokenizer: Tokenizer) -> None:
    prompts = [[5] * 195, [5] * 10]
    results = generate(session, tokenizer, prompts, FREE).results
    assert [(len(result.ids), result.finish_reason) for result in results] == [(6, "context"), (40, "length")]
    assert results[1] == generate(session, tokenizer, prompts[1:], FREE).results[0]
    assert generate(session, tokenizer, [[5] * 200], FREE).results[0].finish_reason == "context"


def test_rows_full_one_after_the_other(session: Session) -> None:
    prompts = [[5] * length for length in (200, 199, 190, 20)]
    results = generate(session, None, prompts, GenerateOptions(max_new_tokens=500)).results
    assert [len(result.ids) for result in results] == [1, 2, 11, 181]


def test_chat_messages_and_token_ids_are_prompts_too(session: Session, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the"}]
    ids = tokenizer.encode_chat(messages)
    chat, raw = generate(session, tokenizer, [messages, ids], FREE).results
    assert chat == raw
    assert chat.text == tokenizer.decode(chat.ids)
    assert generate(session, None, [np.array(ids)], FREE).results[0].ids == raw.ids


def test_timings_count_what_was_made(session: Session, tokenizer: Tokenizer) -> None:
    timings = generate(session, tokenizer, PROMPTS[:2], FREE).timings
    assert timings.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in PROMPTS[:2])
    assert timings.decode_tokens == 2 * 39
    assert timings.prefill_per_second > 0
    assert timings.decode_per_second > 0


def with_config(toy: Path, path: Path, **config: object) -> Path:
    shutil.copytree(toy, path)
    (path / "generation_config.json").write_text(json.dumps(config))
    return path


def test_defaults_come_from_the_artifact(toy: Path, session: Session, tokenizer: Tokenizer) -> None:
    options = GenerateOptions.for_artifact(toy)
    assert options == GenerateOptions(stop_ids=frozenset({1, 3}))
    assert generate(session, tokenizer, ["the"]).results == generate(session, tokenizer, ["the"], options).results


def test_a_model_that_samples(toy: Path, tmp_path: Path) -> None:
    path = with_config(toy, tmp_path / "toy", do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=7, max_new_tokens=11)
    options = GenerateOptions.for_artifact(path)
    assert options.sampling == SamplingOptions(temperature=0.6, top_p=0.9, top_k=50)
    assert (options.stop_ids, options.max_new_tokens) == (frozenset({7}), 11)
    changed = GenerateOptions.for_artifact(path, temperature=0.0, max_new_tokens=5, top_k=None, stop=("x",))
    assert changed.sampling == SamplingOptions(temperature=0.0, top_p=0.9, top_k=50)
    assert (changed.max_new_tokens, changed.stop) == (5, ("x",))


def test_a_filter_turns_sampling_on(toy: Path, tmp_path: Path) -> None:
    path = with_config(toy, tmp_path / "toy", do_sample=False)
    (path / "config.json").write_text(json.dumps({"eos_token_id": [4]}))
    assert GenerateOptions.for_artifact(path).sampling.greedy
    assert GenerateOptions.for_artifact(path, seed=1).sampling.greedy
    assert GenerateOptions.for_artifact(path, top_p=0.5).sampling == SamplingOptions(top_p=0.5, top_k=50)
    assert GenerateOptions.for_artifact(path, temperature=0.5).sampling == SamplingOptions(temperature=0.5, top_k=50)
    assert GenerateOptions.for_artifact(path).stop_ids == frozenset({4})


@pytest.mark.parametrize(("ask", "message"), [
    (lambda s, t: generate(s, t, [[5] * 201], FREE), "prompt 0 has 201 tokens"),
    (lambda s, t: generate(s, t, [[]], FREE), "prompt 0 is empty"),
    (lambda s, t: generate(s, t, [], FREE), "there is no prompt"),
    (lambda s, t: generate(s, None, ["text"], FREE), "needs a tokenizer"),
    (lambda s, t: generate(s, None, [[1]], GenerateOptions(stop=("x",))), "stop strings need a tokenizer"),
    (lambda s, t: Generation(s, t, ["the"], FREE).results, "has not ended"),
    (lambda s, t: GenerateOptions(max_new_tokens=0), "max_new_tokens must be at least 1"),
    (lambda s, t: GenerateOptions(chunk=0), "chunk must be at least 1"),
    (lambda s, t: GenerateOptions(stop=("",)), "must not be empty"),
    (lambda s, t: GenerateOptions.for_artifact(s.path, temprature=1), "unknown option 'temprature'"),
])
def test_a_request_that_cannot_be_served_is_one_clear_error(
        session: Session, tokenizer: Tokenizer, ask: Callable[[Session, Tokenizer], object], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        ask(session, tokenizer)
