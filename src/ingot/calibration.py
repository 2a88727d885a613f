"""Calibration text: from the user's files, or a small sample of several kinds that comes with ingot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ingot.errors import PassError
from ingot.runtime.evaluate import Ids, cut, load_chunks
from ingot.runtime.tokenizer import Tokenizer
from ingot.samples import SAMPLE

TOKENS, CONTEXT = 32768, 512
"""What is used of calibration text, and in sequences of how many tokens, unless told otherwise."""
FEW = 512
"""Tokens of the sample that are used where only the ranges of caches are wanted."""
BUILT_IN = "the sample that comes with ingot"

Files = Path | str | Sequence[Path | str]
"""One file of text (.txt or any other name, .jsonl) or of token ids (.npz), or several."""


def files_of(given: Files | None) -> list[Path]:
    """The files as a list; empty where there are none."""
    return [] if given is None else [Path(p) for p in ([given] if isinstance(given, str | Path) else given)]


def calibration_chunks(directory: Path | None, *, text: Files | None = None, tokens: int = TOKENS, context: int = CONTEXT,
                       vocab: int = 0) -> list[np.ndarray]:
    """Batches of token ids i64[1, s]: chunks of `context` tokens of the text (or of the sample), `tokens` in all at most.

    directory: where the tokenizer lies. Files, and domains of an .npz, take turns, each from its beginning; the last chunk is
    cut where the tokens end. vocab: tokens the model knows, 0 where that is unknown. Raises PassError when there is no
    tokenizer, or for tokens that the model does not know, GenerateError for a file that holds no text.
    """
    files = files_of(text)
    tokenizer = None if files and all(file.suffix == ".npz" for file in files) else _tokenizer(directory)
    if files:
        domains = [ids for file in files for ids in
                   load_chunks(file, tokenizer=tokenizer, context=context, chunks=-(-tokens // context)).values()]
    else:
        assert tokenizer is not None
        domains = [cut(tokenizer.encode(SAMPLE.read_text(encoding="utf-8"), add_special=False), tokenizer, context=context)]
    out: list[np.ndarray] = []
    for chunk in in_turn(domains):
        left = tokens - sum(ids.size for ids in out)
        if left < 2:
            break
        out.append(chunk[None, :left])
    check_known(out, vocab, where=described(text))
    return out


def check_known(chunks: Iterable[Ids], vocab: int, *, where: str) -> None:
    """Raises PassError for tokens that a model of `vocab` tokens (0 where that is unknown) does not have."""
    greatest = max((int(ids.max()) for ids in chunks), default=0)
    if vocab and greatest >= vocab:
        raise PassError(f"there is token id {greatest:,}, the model knows {vocab:,} tokens", where=where,
                        hint="was it made with another model's tokenizer?")


def in_turn(domains: Sequence[Ids]) -> Iterator[Ids]:
    """The chunks of all domains, each i64[n, s], the first of every one before the second of any."""
    for i in range(max(map(len, domains))):
        yield from (ids[i] for ids in domains if i < len(ids))


def described(text: Files | None) -> str:
    """What calibration text is called in receipts and messages: its files by name."""
    return ", ".join(file.name for file in files_of(text)) or BUILT_IN


def _tokenizer(directory: Path | None) -> Tokenizer:
    if directory is None or not (directory / "tokenizer.json").exists():
        raise PassError("calibration text needs the model's tokenizer, and there is no tokenizer.json",
                        hint="give token ids instead: --calib chunks.npz")
    return Tokenizer.open(directory)
