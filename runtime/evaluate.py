"""Measuring a model on text: perplexity, and how far its predictions are from another model's.

Both take a function from token ids to logits, so they work on any backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ingot.errors import GenerateError
from ingot.runtime.documents import token_ids
from ingot.runtime.tokenizer import Tokenizer

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

Logits = Callable[[Ids], Floats]
"""Token ids i64[B, S] to logits f32[B, S, V]; the logits at a position predict the token after it."""

_BLOCK = 256
"""Positions whose log-probabilities are held at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over chunks and how sure it is."""

    per_chunk: tuple[float, ...]
    """The figure of each chunk; all chunks count the same."""

    @property
    def mean(self) -> float:
        """The mean over chunks."""
        return float(np.mean(self.per_chunk))

    @property
    def stderr(self) -> float:
        """Standard error of the mean; nan for a single chunk."""
        count = len(self.per_chunk)
        return float(np.std(self.per_chunk, ddof=1)) / math.sqrt(count) if count > 1 else math.nan

    @classmethod
    def joined(cls, parts: Iterable[Estimate]) -> Estimate:
        """The estimate over the chunks of all parts."""
        return cls(per_chunk=tuple(value for part in parts for value in part.per_chunk))

    def to_json(self) -> dict[str, Any]:
        """Mean, standard error and 95 % interval; null for what is unknown."""
        known = math.isfinite(self.stderr)
        return {"mean": self.mean, "stderr": self.stderr if known else None, "interval95": list(self.interval) if known else None}

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval: Student's t over the chunks, taken as independent and alike."""
        half = student(len(self.per_chunk) - 1) * self.stderr if len(self.per_chunk) > 1 else math.nan
        return self.mean - half, self.mean + half


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a model predicts text."""

    nll: Estimate
    """Mean cross-entropy per predicted token (nats)."""
    tokens: int
    """Tokens predicted: one less than the chunk length, per chunk."""

    @classmethod
    def joined(cls, parts: Sequence[Perplexity]) -> Perplexity:
        """The measurement of several parts, of domains for instance, as if made together."""
        return cls(nll=Estimate.joined(part.nll for part in parts), tokens=sum(part.tokens for part in parts))

    @property
    def chunks(self) -> int:
        """Chunks measured."""
        return len(self.nll.per_chunk)

    @property
    def perplexity(self) -> float:
        """exp of the mean cross-entropy."""
        return math.exp(self.nll.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the perplexity."""
        low, high = self.nll.interval
        return math.exp(low), math.exp(high)

    def to_json(self) -> dict[str, Any]:
        """A JSON record; the interval is null for a single chunk."""
        interval = list(self.interval) if self.chunks > 1 else None
        return {"perplexity": self.perplexity, "interval95": interval, "nll": self.nll.to_json(), "chunks": self.chunks,
                "tokens": self.tokens, "nll_per_chunk": list(self.nll.per_chunk)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model against a reference on the same text."""

    model: Perplexity
    reference: Perplexity
    nll_change: Estimate
    """Cross-entropy of the model minus the reference's, paired by chunk (nats per token)."""
    kl: Estimate
    """Mean Kullback-Leibler divergence of the model's prediction from the reference's (nats per token)."""
    top1: Estimate
    """Share of positions where both find the same token likeliest."""

    @classmethod
    def joined(cls, parts: Sequence[Comparison]) -> Comparison:
        """The measurement of several parts, of domains for instance, as if made together."""
        return cls(model=Perplexity.joined([part.model for part in parts]),
                   reference=Perplexity.joined([part.reference for part in parts]),
                   nll_change=Estimate.joined(part.nll_change for part in parts),
                   kl=Estimate.joined(part.kl for part in parts), top1=Estimate.joined(part.top1 for part in parts))

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the reference's."""
        return math.exp(self.nll_change.mean)

    def to_json(self) -> dict[str, Any]:
        """A JSON record."""
        estimates = {"nll_change": self.nll_change, "kl": self.kl, "top1": self.top1}
        return {"perplexity_ratio": self.perplexity_ratio, "model": self.model.to_json(), "reference": self.reference.to_json(),
                **{name: estimate.to_json() for name, estimate in estimates.items()}}


@lru_cache(maxsize=64)
def student(freedom: int) -> float:
    """What 95 % of Student's t with this many degrees of freedom, 1 or more, lie within: 12.71, 4.30, 3.18, ... 1.96.

    By bisection on the angle in the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        angle = (low + high) / 2
        sine, cosine = math.sin(angle), math.cos(angle)
        odd = freedom % 2
        term = cosine if odd else 1.0
        total = 0.0
        for k in range(1 + odd, freedom, 2):
            total += term
            term *= cosine * cosine * k / (k + 1)
        inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
        low, high = (angle, high) if inside < 0.95 else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def measure(logits: Logits, domains: Mapping[str, Ids], *, reference: Logits | None = None, batch: int = 1,
            progress: Callable[[int, int, str], None] | None = None) -> dict[str, Perplexity | Comparison]:
    """The perplexity on each domain's chunks i64[n, S], or with a `reference` the comparison; the last entry, `all`, joins them.

    Where chunks of domains differ in length there is no `all`. progress: called with (chunks done, chunks, domain). Memory:
    the logits of one batch, of each model.
    """
    total, done = sum(map(len, domains.values())), 0
    out: dict[str, Any] = {}
    for name, ids in domains.items():
        def step(n: int, name: str = name, start: int = done) -> None:
            if progress is not None:
                progress(start + n, total, name)

        out[name] = (perplexity(logits, ids, batch=batch, progress=step) if reference is None
                     else compare(logits, reference, ids, batch=batch, progress=step))
        done += len(ids)
    if len(domains) == 1:
        return {"all": next(iter(out.values()))}
    if len({ids.shape[1] for ids in domains.values()}) == 1:
        parts = list(out.values())
        out["all"] = type(parts[0]).joined(parts)
    return out


def perplexity(logits: Logits, chunks: ArrayLike, *, batch: int = 1, progress: Callable[[int], None] | None = None) -> Perplexity:
    """The perplexity of a model on chunks of token ids, i64[n, S], S at least 2.

    Every chunk is predicted from its own beginning; the first token of each is not predicted. `progress` is told the
    chunks done so far. Log-sum-exp takes float32 terms and float64 sums.
    """
    data = _checked(chunks)
    losses: list[Doubles] = []
    for first in range(0, len(data), batch):
        ids = data[first : first + batch]
        losses += [_losses(scores, row[1:]) for scores, row in zip(_predictions(logits, ids), ids, strict=True)]
        if progress is not None:
            progress(len(losses))
    return _summary(losses)


def compare(logits: Logits, reference: Logits, chunks: ArrayLike, *, batch: int = 1,
            progress: Callable[[int], None] | None = None) -> Comparison:
    """How far a model's predictions are from a reference's on chunks of token ids, i64[n, S], S at least 2."""
    data = _checked(chunks)
    model: list[Doubles] = []
    other: list[Doubles] = []
    divergence: list[float] = []
    agreement: list[float] = []
    for first in range(0, len(data), batch):
        ids = data[first : first + batch]
        for p, q, row in zip(_predictions(reference, ids).copy(), _predictions(logits, ids), ids, strict=True):
            if p.shape != q.shape:
                raise GenerateError(f"the models have vocabularies of {q.shape[-1]:,} and {p.shape[-1]:,} tokens",
                                    hint="they must share a tokenizer to be compared")
            other.append(_losses(p, row[1:]))
            model.append(_losses(q, row[1:]))
            divergence.append(_divergence(p, q))
            agreement.append(float((p.argmax(-1) == q.argmax(-1)).mean()))
        if progress is not None:
            progress(len(model))
    change = tuple(float(m.mean() - o.mean()) for m, o in zip(model, other, strict=True))
    return Comparison(model=_summary(model), reference=_summary(other), nll_change=Estimate(per_chunk=change),
                      kl=Estimate(per_chunk=tuple(divergence)), top1=Estimate(per_chunk=tuple(agreement)))


def load_chunks(path: Path | str, *, tokenizer: Tokenizer | None = None, context: int = 1024,
                chunks: int | None = None) -> dict[str, Ids]:
    """Chunks of token ids by domain, each i64[n, S].

    path: an .npz whose arrays are chunks [n, S] (the array's name is the domain; longer than `context` is cut), or a
    text file or .jsonl, read by `ingot.runtime.documents` and cut into chunks of `context` tokens (a rest is dropped unless it
    is all there is), each behind a BOS token where the tokenizer puts one in front of a text. chunks: take only so many of
    each domain. Raises GenerateError for a file that is neither.
    """
    file = Path(path)
    if not file.is_file():
        raise GenerateError("there is no such file", where=str(file))
    if file.suffix == ".npz":
        return {name: _checked(found[:, :context] if found.ndim == 2 else found, where=f"{file}: {name}")[:chunks]
                for name, found in _arrays(file).items()}
    if tokenizer is None:
        raise GenerateError("a text file needs a tokenizer", where=str(file), hint="pass an .npz of token ids instead")
    ids = token_ids(file, tokenizer, most=None if chunks is None else chunks * context)
    if len(ids) < 2:
        raise GenerateError(f"the text has {len(ids)} tokens; at least 2 are needed" if ids else "the text is empty",
                            where=str(file))
    return {file.stem: cut(ids, tokenizer, context=context)[:chunks]}


def cut(ids: Sequence[int], tokenizer: Tokenizer, *, context: int) -> Ids:
    """Two tokens or more as chunks i64[n, S], as `load_chunks` cuts them."""
    size = min(context, len(ids))
    rows = np.asarray(ids[: len(ids) // size * size], np.int64).reshape(-1, size)
    bos = tokenizer.bos_id
    return with_bos(rows, bos) if bos is not None and bos in tokenizer.encode("") else rows


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, at least one; pickled ones are refused."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # for damaged files zipfile, zlib and numpy raise a dozen types
        reason = str(error).split("\n")[0] or type(error).__name__
        raise GenerateError(f"this is no .npz file of token chunks: {reason}", where=str(file),
                            hint="make it with numpy.savez(file, domain=ids), ids of shape [chunks, tokens]") from error
    if not found:
        raise GenerateError("this .npz file holds no arrays", where=str(file))
    return found


def with_bos(chunks: ArrayLike, bos: int) -> Ids:
    """The chunks i64[n, S] with `bos` put in front of each and its last token dropped, so the length stays."""
    data = _checked(chunks)
    return np.concatenate([np.full((len(data), 1), bos, np.int64), data[:, :-1]], axis=1)


def merged(domains: Mapping[str, Ids]) -> Ids:
    """All domains' chunks as one array i64[n, S]; GenerateError when their lengths differ."""
    lengths = {chunks.shape[1] for chunks in domains.values()}
    if len(lengths) != 1:
        raise GenerateError(f"the domains have chunks of {sorted(lengths)} tokens; they must be of one length")
    return np.concatenate(list(domains.values()))


def _checked(chunks: ArrayLike, *, where: str | None = None) -> Ids:
    data = np.asarray(chunks)
    if data.ndim != 2 or not len(data) or data.shape[1] < 2 or data.dtype.kind not in "iu":
        raise GenerateError(f"chunks must be integers of shape [chunks, tokens >= 2], not {data.dtype} {list(data.shape)}",
                            where=where)
    ids = data.astype(np.int64)
    if ids.min() < 0:
        raise GenerateError(f"{ids.min()} is no token id; chunks hold ids from 0 on", where=where)
    return ids


def _predictions(logits: Logits, ids: Ids) -> Floats:
    """Logits f32[B, S - 1, V] of every position that has a next token."""
    scores = np.asarray(logits(ids), np.float32)
    if scores.shape[:2] != ids.shape:
        raise GenerateError(f"the model gave logits of shape {list(scores.shape)} for ids of shape {list(ids.shape)}")
    if int(ids.max()) >= scores.shape[2]:
        raise GenerateError(f"token id {ids.max()} is outside the model's vocabulary of {scores.shape[2]:,}",
                            hint="were the chunks made with another tokenizer?")
    return scores[:, :-1]


def _log_normalisers(scores: Floats) -> Doubles:
    """log sum exp over the vocabulary, f32[n, V] to f64[n]."""
    top = scores.max(axis=-1, keepdims=True)
    total: Doubles = np.log(np.exp(scores - top).sum(axis=-1, dtype=np.float64)) + top[:, 0].astype(np.float64)
    return total


def _losses(scores: Floats, targets: Ids) -> Doubles:
    """Cross-entropy of each position (nats), f32[n, V] and i64[n] to f64[n]."""
    blocks = [_log_normalisers(scores[first : first + _BLOCK]) for first in range(0, len(scores), _BLOCK)]
    if not all(np.isfinite(block).all() for block in blocks):
        raise GenerateError("the model's logits are not finite", hint="the checkpoint is broken, or its element type overflows")
    losses: Doubles = np.concatenate(blocks) - scores[np.arange(len(targets)), targets].astype(np.float64)
    return losses


def _divergence(p: Floats, q: Floats) -> float:
    """Mean over positions of KL(softmax p || softmax q), both f32[n, V] (nats)."""
    total = 0.0
    for first in range(0, len(p), _BLOCK):
        a, b = p[first : first + _BLOCK].astype(np.float64), q[first : first + _BLOCK].astype(np.float64)
        a -= _log_normalisers(p[first : first + _BLOCK])[:, None]
        b -= _log_normalisers(q[first : first + _BLOCK])[:, None]
        weights = np.exp(a)
        # A token of probability 0 on both sides is -inf minus -inf, and counts nothing.
        gaps = np.subtract(a, b, out=np.zeros_like(a), where=weights > 0)
        total += float((weights * gaps).sum())
    return total / len(p)


def _summary(losses: list[Doubles]) -> Perplexity:
    means = tuple(float(chunk.mean()) for chunk in losses)
    return Perplexity(nll=Estimate(per_chunk=means), tokens=sum(len(chunk) for chunk in losses))
