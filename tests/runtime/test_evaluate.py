"""Perplexity, divergence and agreement equal torch's; chunks come from text and from arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ingot.errors import GenerateError
from ingot.runtime.evaluate import (
    Comparison,
    Estimate,
    Perplexity,
    compare,
    load_chunks,
    measure,
    merged,
    perplexity,
    student,
    with_bos,
)
from ingot.runtime.session import Session
from ingot.runtime.tokenizer import Tokenizer

V = 50
CHUNKS = np.random.default_rng(0).integers(0, V, (5, 12))


class Table:
    """A model whose logits depend on the last token only."""

    def __init__(self, seed: int) -> None:
        self.table = (np.random.default_rng(seed).standard_normal((V, V)) * 3).astype(np.float32)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return self.table[ids]


def log_probabilities(model: Table) -> torch.Tensor:
    return torch.log_softmax(torch.tensor(model(CHUNKS[:, :-1]), dtype=torch.float64), -1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_perplexity_equals_torch(batch: int) -> None:
    model = Table(1)
    done: list[int] = []
    measured = perplexity(model, CHUNKS, batch=batch, progress=done.append)
    expected = -log_probabilities(model).gather(-1, torch.tensor(CHUNKS[:, 1:, None]))[..., 0]
    assert measured.nll.mean == pytest.approx(float(expected.mean()), rel=1e-6)
    assert measured.perplexity == pytest.approx(float(expected.mean().exp()), rel=1e-6)
    assert measured.nll.stderr == pytest.approx(float(expected.mean(1).std() / math.sqrt(5)), rel=1e-5)
    assert (measured.chunks, measured.tokens) == (5, 55)
    np.testing.assert_allclose(measured.nll.per_chunk, expected.mean(1), rtol=1e-6)
    assert measured.interval[0] < measured.perplexity < measured.interval[1]
    assert done[-1] == 5


def test_comparison_equals_torch() -> None:
    model, reference = Table(1), Table(2)
    measured = compare(model, reference, CHUNKS, batch=2)
    p, q = log_probabilities(reference), log_probabilities(model)
    kl = (p.exp() * (p - q)).sum(-1)
    assert measured.kl.mean == pytest.approx(float(kl.mean()), rel=1e-6)
    assert measured.kl.stderr == pytest.approx(float(kl.mean(1).std() / math.sqrt(5)), rel=1e-5)
    assert measured.top1.mean == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert measured.model == perplexity(model, CHUNKS)
    assert measured.reference == perplexity(reference, CHUNKS)
    assert measured.perplexity_ratio == pytest.approx(measured.model.perplexity / measured.reference.perplexity)


def test_a_model_against_itself() -> None:
    measured = compare(Table(1), Table(1), CHUNKS)
    assert (measured.kl.mean, measured.top1.mean, measured.perplexity_ratio) == (0, 1, 1)


def test_logits_that_are_minus_infinity_on_both_sides_count_nothing() -> None:
    model, reference = Table(1), Table(2)
    for table in (model.table, reference.table):
        table[:, 40:] = -np.inf
    assert math.isfinite(compare(model, reference, CHUNKS % 40).kl.mean)


def test_intervals_are_student_s() -> None:
    """Tables of the t distribution; one chunk says nothing about the spread."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980, 10_000: 1.960}
    assert {n: round(student(n), 3) for n in table} == table
    low, high = Estimate(per_chunk=(1.0, 2.0, 3.0)).interval
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), rel=1e-4)
    assert Estimate(per_chunk=(1.0,)).to_json() == {"mean": 1.0, "stderr": None, "interval95": None}


def test_domains_one_after_the_other() -> None:
    model, reference = Table(1), Table(2)
    told: list[tuple[int, int, str]] = []
    found = measure(model, {"a": CHUNKS[:2], "b": CHUNKS[2:]}, reference=reference, progress=lambda *t: told.append(t))
    assert list(found) == ["a", "b", "all"]
    assert found["all"] == compare(model, reference, CHUNKS)
    assert (told[0], told[-1]) == ((1, 5, "a"), (5, 5, "b"))
    assert list(measure(model, {"a": CHUNKS})) == ["all"]
    assert list(measure(model, {"a": CHUNKS, "b": CHUNKS[:, :6]})) == ["a", "b"]


def test_no_more_than_one_batch_of_logits_is_kept() -> None:
    """Of either model, however many chunks there are."""
    import tracemalloc

    def peak(count: int) -> int:
        chunks = np.random.default_rng(0).integers(0, V, (count, 256))
        tracemalloc.start()
        compare(Table(1), Table(2), chunks)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(40) - peak(4) < 0.2 * 36 * 256 * V * 4  # a fifth of the further chunks' logits


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = Table(1)
    model.table[CHUNKS[3, 4]] = np.nan
    with pytest.raises(GenerateError, match="not finite"):
        perplexity(model, CHUNKS)


def test_a_buffer_the_model_reuses_does_not_spoil_the_comparison() -> None:
    buffer = np.empty((1, 12, V), np.float32)

    def reusing(model: Table) -> object:
        def logits(ids: np.ndarray) -> np.ndarray:
            buffer[:] = model(ids)
            return buffer
        return logits

    assert compare(reusing(Table(1)), reusing(Table(2)), CHUNKS) == compare(Table(1), Table(2), CHUNKS)


def test_domains_measured_apart_join_to_the_whole() -> None:
    model, reference = Table(1), Table(2)
    whole = compare(model, reference, CHUNKS)
    parts = [compare(model, reference, CHUNKS[:2]), compare(model, reference, CHUNKS[2:])]
    assert Comparison.joined(parts) == whole
    assert Perplexity.joined([part.model for part in parts]) == perplexity(model, CHUNKS)


def test_records_are_json_also_for_one_chunk() -> None:
    record = compare(Table(1), Table(2), CHUNKS[:1]).to_json()
    assert record["kl"]["stderr"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_session_is_a_model(session: Session) -> None:
    chunks = np.random.default_rng(0).integers(0, 320, (3, 20))
    full = session.logits(chunks)
    scores, targets = torch.tensor(full[:, :-1]).reshape(-1, 320).double(), torch.tensor(chunks[:, 1:]).reshape(-1)
    expected = torch.nn.functional.cross_entropy(scores, targets)
    assert perplexity(session.logits, chunks, batch=2).nll.mean == pytest.approx(float(expected), rel=1e-5)


def test_bos_takes_a_place_at_the_front() -> None:
    chunks = with_bos(CHUNKS, 7)
    assert chunks.shape == CHUNKS.shape
    assert (chunks[:, 0] == 7).all()
    np.testing.assert_array_equal(chunks[:, 1:], CHUNKS[:, :-1])


FOX = "the quick brown fox " * 30


def test_chunks_of_a_text_begin_as_texts_do(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """With a BOS token, where the tokenizer puts one in front."""
    file = tmp_path / "fox.txt"
    file.write_text(FOX, encoding="utf-8")
    ids = np.array(tokenizer.encode(FOX, add_special=False))
    chunks = load_chunks(file, tokenizer=tokenizer, context=16)["fox"]
    assert (chunks[:, 0] == tokenizer.bos_id).all()
    np.testing.assert_array_equal(chunks[:, 1:], ids[: len(ids) // 16 * 16].reshape(-1, 16)[:, :-1])
    assert load_chunks(file, tokenizer=tokenizer, context=10_000)["fox"].tolist() == [[tokenizer.bos_id, *ids[:-1]]]
    np.testing.assert_array_equal(load_chunks(file, tokenizer=tokenizer, context=16, chunks=2)["fox"], chunks[:2])


def test_chunks_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=CHUNKS.astype(np.int32), b=CHUNKS[:2])
    domains = load_chunks(tmp_path / "x.npz", context=8)
    assert {name: chunks.shape for name, chunks in domains.items()} == {"a": (5, 8), "b": (2, 8)}
    assert merged(domains).shape == (7, 8)
    with pytest.raises(GenerateError, match="of one length"):
        merged({"a": domains["a"], "b": domains["b"][:, :4]})


def test_what_cannot_be_measured_is_one_clear_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "one.txt").write_text("t")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    np.savez(tmp_path / "floats.npz", a=np.zeros((2, 3)))
    for file, message in (("no.txt", "no such file"), ("one.txt", "1 tokens; at least 2"), ("latin.txt", "not UTF-8"),
                          ("floats.npz", "must be integers")):
        with pytest.raises(GenerateError, match=message):
            load_chunks(tmp_path / file, tokenizer=tokenizer)
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(GenerateError, match="the text is empty"):
        load_chunks(tmp_path / "blank.txt", tokenizer=tokenizer)
    with pytest.raises(GenerateError, match="needs a tokenizer"):
        load_chunks(tmp_path / "one.txt")
    with pytest.raises(GenerateError, match="outside the model's vocabulary of 50"):
        perplexity(lambda ids: np.zeros((*ids.shape, V), np.float32), CHUNKS + V)
    with pytest.raises(GenerateError, match="vocabularies of 40 and 50"):
        compare(lambda ids: np.zeros((*ids.shape, 40), np.float32), Table(1), CHUNKS % 40)
    with pytest.raises(GenerateError, match="gave logits of shape"):
        perplexity(lambda ids: np.zeros((1, 1, V), np.float32), CHUNKS)
