"""The documents of a text file as token ids: plain text, or JSON lines of texts and conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingot.errors import GenerateError
from ingot.runtime.tokenizer import Tokenizer

LONGEST_TOKEN = 32
"""Characters of text for a token, on average, that are read where only so many tokens are wanted; 3 to 5 are usual."""
UNKNOWN = 0.5
"""Share of unknown tokens from which the tokenizer cannot be the text's."""


def token_ids(file: Path, tokenizer: Tokenizer, *, most: int | None = None) -> list[int]:
    """The tokens of all documents of a file in order, an end-of-text token (where there is one) behind each but the last.

    file: plain text is one document. In a .jsonl file every line is one: {"text": "..."}, {"messages": [{"role": ...,
    "content": ...}, ...]}, which goes through the chat template, or "...". most: tokens to read, about, from the beginning.
    Raises GenerateError, with the line, for what is none of these, and for a text that is mostly unknown to the tokenizer.
    """
    limit = None if most is None else most * LONGEST_TOKEN
    ids: list[int] = []
    for document in _conversations(file, tokenizer, limit) if file.suffix == ".jsonl" else _plain(file, tokenizer, limit):
        if ids and tokenizer.eos_id is not None and ids[-1] != tokenizer.eos_id:
            ids.append(tokenizer.eos_id)
        ids += document
        if most is not None and len(ids) >= most:
            break
    unknown = tokenizer.token_id(tokenizer.special.get("unk_token"))
    if unknown is not None and ids and ids.count(unknown) > UNKNOWN * len(ids):
        raise GenerateError(f"{ids.count(unknown) / len(ids):.0%} of the text is unknown to the tokenizer", where=str(file),
                            hint="is this the tokenizer of the model, and is the text in a language it knows?")
    return ids


def _plain(file: Path, tokenizer: Tokenizer, limit: int | None) -> Iterator[list[int]]:
    text, _ = _read(file, limit)
    if text.strip():
        yield tokenizer.encode(text, add_special=False)


def _conversations(file: Path, tokenizer: Tokenizer, limit: int | None) -> Iterator[list[int]]:
    text, whole = _read(file, limit)
    lines = text.split("\n")
    if not whole and len(lines) > 1:
        lines.pop()  # it may be cut
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise GenerateError(f"this line is not JSON: {error}", where=f"{file}:{number}") from None
        try:
            yield _encoded(entry, tokenizer)
        except GenerateError as error:
            raise GenerateError(error.message, where=f"{file}:{number}", hint=error.hint) from error


def _encoded(entry: Any, tokenizer: Tokenizer) -> list[int]:
    text = entry.get("text") if isinstance(entry, dict) else entry
    if isinstance(text, str):
        return tokenizer.encode(text, add_special=False)
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise GenerateError("this line holds no text",
                            hint='write {"text": "..."} or {"messages": [{"role": ..., "content": ...}]}')
    return tokenizer.encode_chat(messages, add_generation_prompt=False)


def _read(file: Path, limit: int | None) -> tuple[str, bool]:
    """The text of a file, or its first `limit` characters; and whether that is all."""
    try:
        with file.open(encoding="utf-8-sig") as source:
            return source.read(limit), not source.read(1)
    except UnicodeDecodeError as error:
        raise GenerateError("this is not UTF-8 text", where=str(file), hint="give a text file or an .npz of token ids") from error
    except OSError as error:
        raise GenerateError(f"cannot be read: {error.strerror}", where=str(file)) from error
