"""Measuring the speed of a decoder."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.errors import GenerateError
from ingot.runtime.sampling import Sampler, SamplingOptions
from ingot.runtime.session import CHUNK, Session


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Speeds of one artifact on one machine; the speeds are medians over the repeats."""

    batch: int
    """Rows decoded at a time."""
    prompt_tokens: int
    """Prompt length of every row."""
    past: int
    """Cached tokens of every row when decoding starts."""
    new_tokens: int
    """Tokens decoded per row."""
    threads: int | None
    """Threads within one operator; None where ONNX Runtime chose."""
    prefill_per_second: float
    """Prompt tokens per second, all rows together."""
    decode_per_second: float
    """New tokens per second, all rows together."""
    prefill_seconds: tuple[float, ...]
    """Time of each repeat's prefill of all rows."""
    decode_seconds: tuple[float, ...]
    """Time of each repeat's decoding."""
    cache_bytes: int
    """Size of the key/value cache."""
    peak_rss_bytes: int
    """Most memory this process has held so far, loading included."""
    machine: str
    """Processor architecture and number of cores."""

    def to_json(self) -> dict[str, Any]:
        """A JSON record."""
        return asdict(self)


def bench(session: Session, *, prompt_tokens: int = 512, new_tokens: int = 128, batch: int = 1, past: int | None = None,
          repeats: int = 3, chunk: int = CHUNK, seed: int = 0, progress: Callable[[int], None] | None = None) -> BenchResult:
    """Times prefill of `prompt_tokens` random tokens and greedy decoding of `new_tokens` after `past` tokens.

    past: None decodes after the prompt. One untimed round warms up first. `progress` is told the rounds done.
    GenerateError when the tokens do not fit the model's context.
    """
    start = prompt_tokens if past is None else past
    for name, number in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens), ("batch", batch), ("past", start),
                         ("repeats", repeats)):
        if number < 1:
            raise GenerateError(f"{name} must be at least 1, not {number}")
    if max(start + new_tokens, prompt_tokens) > session.context:
        raise GenerateError(f"{start} + {new_tokens} tokens do not fit the model's context of {session.context:,}",
                            hint="measure fewer tokens")
    ids = np.random.default_rng(seed).integers(0, session.manifest.vocab, (batch, max(start, prompt_tokens)))
    rounds: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        rounds.append(_round(session, ids, prompt_tokens=prompt_tokens, past=start, new_tokens=new_tokens, chunk=chunk))
        if progress is not None:
            progress(len(rounds))
    prefill, decode = zip(*rounds[1:], strict=True)
    return BenchResult(
        batch=batch, prompt_tokens=prompt_tokens, past=start, new_tokens=new_tokens, threads=session.threads,
        prefill_per_second=batch * prompt_tokens / statistics.median(prefill),
        decode_per_second=batch * new_tokens / statistics.median(decode),
        prefill_seconds=prefill, decode_seconds=decode, cache_bytes=session.cache_bytes, peak_rss_bytes=peak_rss(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores")


def peak_rss() -> int:
    """Most memory this process has held so far (bytes); 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _round(session: Session, ids: NDArray[np.int64], *, prompt_tokens: int, past: int, new_tokens: int,
           chunk: int) -> tuple[float, float]:
    """Seconds of prefill and of decoding."""
    session.reset(len(ids), reserve=max(prompt_tokens, past + new_tokens))
    started = time.perf_counter()
    logits = session.prefill(list(ids[:, :prompt_tokens]), chunk=chunk, append=True)
    prefill = time.perf_counter() - started
    if past < prompt_tokens:
        session.rewind(prompt_tokens - past)
    elif past > prompt_tokens:
        logits = session.prefill(list(ids[:, prompt_tokens:past]), chunk=chunk, append=True)
    sampler = Sampler(SamplingOptions(temperature=0), rows=len(ids))
    tokens = sampler.choose(logits)
    started = time.perf_counter()
    for _ in range(new_tokens):
        tokens = session.step_tokens(tokens, sampler)
    return prefill, time.perf_counter() - started
