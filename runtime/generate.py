"""Generating text: prompts in, text out, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ingot.errors import GenerateError
from ingot.runtime.chat import Message
from ingot.runtime.sampling import Sampler, SamplingOptions
from ingot.runtime.session import CHUNK, Session
from ingot.runtime.stream import Detokenizer, StopFinder
from ingot.runtime.tokenizer import Tokenizer, read_json

T = TypeVar("T")

Prompt = str | Sequence[int] | Sequence[Message]
"""Plain text to continue, token ids, or chat messages for the model's template."""

FinishReason = Literal["stop", "length", "context"]
"""A stop id or stop string came; max_new_tokens were made; the model's context is full."""

_SAMPLING = frozenset(f.name for f in fields(SamplingOptions))
_RANDOM = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""Options that mean sampling is wanted."""


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What to generate and when to stop."""

    max_new_tokens: int = 256
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(temperature=0))
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end a row; the token itself is in the result's ids, not in its text."""
    stop: tuple[str, ...] = ()
    """Strings that end a row; nothing of them is in the text."""
    chunk: int = CHUNK
    """Prompt tokens per call in prefill."""
    adapters: tuple[str | None, ...] = ()
    """Adapters of the artifact, by name: one for all prompts, or one for each (None for none)."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "chunk"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise GenerateError(f"{name} must be at least 1, not {value!r}")
        if "" in self.stop:
            raise GenerateError("a stop string must not be empty")

    @classmethod
    def for_artifact(cls, path: Path | str, **changes: Any) -> GenerateOptions:
        """What the model's generation_config.json asks for, with `changes`.

        changes: fields of this class and of SamplingOptions; None leaves the model's choice. A model that does not
        sample does once a temperature, top_k, top_p or min_p is given. Stop ids come from generation_config.json,
        else config.json.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        own = {f.name for f in fields(cls)}
        if unknown := sorted(set(given) - own - _SAMPLING):
            raise GenerateError(f"unknown option {unknown[0]!r}", hint=f"there are: {', '.join(sorted(own | _SAMPLING))}")
        config = read_json(Path(path) / "generation_config.json")
        stop_ids = config.get("eos_token_id", read_json(Path(path) / "config.json").get("eos_token_id"))
        sampling = _model_sampling(config, sample=bool(config.get("do_sample")) or bool(_RANDOM & set(given)))
        defaults = cls(
            max_new_tokens=config.get("max_new_tokens") or cls.max_new_tokens,
            stop_ids=frozenset(_list_of(int, "eos_token_id", stop_ids)),
            stop=_list_of(str, "stop_strings", config.get("stop_strings")),
            sampling=replace(given.get("sampling", sampling), **{k: v for k, v in given.items() if k in _SAMPLING}),
        )
        return replace(defaults, **{name: value for name, value in given.items() if name in own - {"sampling"}})


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token of one row, as it comes."""

    row: int
    """Which prompt it continues."""
    token: int
    text: str
    """The text that became certain with it; may be empty, or belong to earlier tokens too."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one prompt got."""

    text: str
    ids: tuple[int, ...]
    """The new tokens, a final stop id included."""
    finish_reason: FinishReason
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time went. Seconds in the model and the sampler; the consumer of a stream does not count."""

    prompt_tokens: int
    prefill_seconds: float
    decode_tokens: int
    """New tokens but the first of each row, which prefill gives."""
    decode_seconds: float

    @property
    def prefill_per_second(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_per_second(self) -> float:
        """New tokens per second after the first, all rows together."""
        return self.decode_tokens / max(self.decode_seconds, 1e-9)


class Generation:
    """A batch of prompts being continued: iterate over it for the pieces; `results` and `timings` are there at the end."""

    def __init__(self, session: Session, tokenizer: Tokenizer | None, prompts: Sequence[Prompt],
                 options: GenerateOptions) -> None:
        """tokenizer: may be None for prompts of token ids, then there is no text. Nothing runs before the iteration."""
        if tokenizer is None and options.stop:
            raise GenerateError("stop strings need a tokenizer")
        self._session = session
        self._options = options
        self._prompts = [_encode(tokenizer, prompt) for prompt in prompts]
        room = [session.context - len(ids) + 1 for ids in self._prompts]
        self._rows = [_Row(tokenizer, options, context=ids if isinstance(prompt, str) else (), room=space)
                      for prompt, ids, space in zip(prompts, self._prompts, room, strict=True)]
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0

    def __iter__(self) -> Iterator[Piece]:
        session, options = self._session, self._options
        sampler = Sampler(options.sampling, rows=len(self._prompts))
        started = time.perf_counter()
        longest = max((len(ids) for ids in self._prompts), default=0)
        session.reset(len(self._prompts), reserve=longest + options.max_new_tokens, adapters=options.adapters)
        logits = session.prefill(self._prompts, chunk=options.chunk, append=True)
        self._prefill_seconds = time.perf_counter() - started
        for row, ids in enumerate(self._prompts):
            sampler.observe(row, ids)
        slots = list(range(len(self._prompts)))  # slots[i]: the row at place i of the batch
        tokens = sampler.choose(logits)
        while True:
            ended = np.zeros(len(slots), np.int64)
            for place, row in enumerate(slots):
                if self._rows[row].finish_reason is None:
                    text = self._rows[row].accept(int(tokens[place]))
                    ended[place] = self._rows[row].finish_reason is not None
                    yield Piece(row=row, token=int(tokens[place]), text=text)
            live = [place for place, row in enumerate(slots) if self._rows[row].finish_reason is None]
            if not live:
                return
            # A finished row is stepped on at one place that is no longer read, which a full row has to free first.
            session.rewind(ended)
            if len(live) <= len(slots) // 2:  # moving the cache costs some steps, so not for every row that ends
                session.select(live)
                sampler.select(live)
                slots, tokens, live = [slots[place] for place in live], tokens[live], list(range(len(live)))
            started = time.perf_counter()
            hold = np.ones(len(slots), np.bool_)
            hold[live] = False
            tokens = session.step_tokens(tokens, sampler, hold=hold)
            self._decode_seconds += time.perf_counter() - started

    @property
    def results(self) -> list[Result]:
        """One result per prompt, in order; GenerateError before the iteration has ended."""
        return [row.result(len(ids)) for row, ids in zip(self._rows, self._prompts, strict=True)]

    @property
    def timings(self) -> Timings:
        """The time taken so far."""
        return Timings(prompt_tokens=sum(len(ids) for ids in self._prompts), prefill_seconds=self._prefill_seconds,
                       decode_tokens=sum(max(len(row.ids) - 1, 0) for row in self._rows),
                       decode_seconds=self._decode_seconds)


def stream(session: Session, tokenizer: Tokenizer | None, prompts: Sequence[Prompt],
           options: GenerateOptions | None = None) -> Generation:
    """A generation to iterate over; options default to what the artifact's generation_config.json says."""
    return Generation(session, tokenizer, prompts, options or GenerateOptions.for_artifact(session.path))


def generate(session: Session, tokenizer: Tokenizer | None, prompts: Sequence[Prompt],
             options: GenerateOptions | None = None) -> Generation:
    """Continues every prompt to its end and returns the finished generation.

    Without sampling a row's result does not depend on the others; with it, row i alone gives the same with seed + i.
    """
    generation = stream(session, tokenizer, prompts, options)
    for _ in generation:
        pass
    return generation


class _Row:
    """The state of one prompt's continuation."""

    def __init__(self, tokenizer: Tokenizer | None, options: GenerateOptions, *, context: Sequence[int], room: int) -> None:
        """room: how many new tokens the context leaves (the last one is not fed back, so one more than positions)."""
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, context=context)
        self._finder = StopFinder(options.stop)
        self._stop_ids = options.stop_ids
        self._most = options.max_new_tokens
        self._room = room
        self._pieces: list[str] = []
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None

    def accept(self, token: int) -> str:
        """Adds a token, decides whether the row ends with it, and returns the text that is certain now."""
        self.ids.append(token)
        text = ""
        if token in self._stop_ids:
            self.finish_reason = "stop"
        elif self._detokenizer is not None:
            text = self._finder.push(self._detokenizer.push(token))
        if self.finish_reason is None and len(self.ids) >= min(self._most, self._room):
            self.finish_reason = "length" if len(self.ids) >= self._most else "context"
        if self.finish_reason is not None and self._detokenizer is not None:
            text += self._finder.push(self._detokenizer.finish()) + self._finder.finish()
        if self._finder.found is not None:
            self.finish_reason = "stop"
        self._pieces.append(text)
        return text

    def result(self, prompt_tokens: int) -> Result:
        if self.finish_reason is None:
            raise GenerateError("the generation has not ended", hint="iterate over it first, or use generate()")
        return Result(text="".join(self._pieces), ids=tuple(self.ids), finish_reason=self.finish_reason,
                      prompt_tokens=prompt_tokens)


def _encode(tokenizer: Tokenizer | None, prompt: Prompt) -> list[int]:
    messages = [] if isinstance(prompt, str) else [item for item in prompt if isinstance(item, Mapping)]
    if not messages and not isinstance(prompt, str):
        return [int(token) for token in prompt if not isinstance(token, Mapping)]
    if tokenizer is None:
        raise GenerateError("a prompt of text needs a tokenizer", hint="pass token ids instead")
    return tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(messages)


def _list_of(kind: type[T], name: str, value: Any) -> tuple[T, ...]:
    """One or several of a kind, as model files write them. Raises GenerateError for something else."""
    items = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is kind for item in items):
        raise GenerateError(f"{name} in the model's files cannot be {value!r:.60}", hint="repair generation_config.json")
    return tuple(items)


def _model_sampling(config: Mapping[str, Any], *, sample: bool) -> SamplingOptions:
    """The sampling a generation_config.json asks for; where it is silent, transformers' defaults (top_k 50)."""
    defaults = {"repetition_penalty": 1.0} if not sample else {
        "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
    values: dict[str, Any] = {name: default if config.get(name) is None else config[name] for name, default in defaults.items()}
    return SamplingOptions(**{"temperature": 0, **values})
