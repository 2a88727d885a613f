"""The bench measures what it says; figures are not judged here."""

from __future__ import annotations

import json
import statistics

import pytest

from ingot.errors import GenerateError
from ingot.runtime.bench import bench
from ingot.runtime.session import Session


@pytest.mark.parametrize("past", [None, 3, 60])
def test_a_bench(session: Session, past: int | None) -> None:
    done: list[int] = []
    result = bench(session, prompt_tokens=20, new_tokens=4, batch=2, past=past, repeats=3, progress=done.append)
    assert session.lengths.tolist() == [(past or 20) + 4] * 2
    assert (len(result.prefill_seconds), len(result.decode_seconds), done) == (3, 3, [1, 2, 3, 4])
    assert result.past == (past or 20)
    assert result.prefill_per_second == pytest.approx(2 * 20 / statistics.median(result.prefill_seconds))
    assert result.decode_per_second == pytest.approx(2 * 4 / statistics.median(result.decode_seconds))
    assert result.peak_rss_bytes > 10_000_000
    assert result.threads == 1
    assert json.loads(json.dumps(result.to_json()))["batch"] == 2


@pytest.mark.parametrize(("options", "message"), [
    ({"prompt_tokens": 199, "new_tokens": 2}, r"199 \+ 2 tokens do not fit the model's context of 200"),
    ({"prompt_tokens": 300, "past": 1}, "do not fit"),
    ({"batch": 0}, "batch must be at least 1"),
    ({"past": 0}, "past must be at least 1"),
])
def test_a_bench_that_cannot_run(session: Session, options: dict[str, int], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        bench(session, **options)
