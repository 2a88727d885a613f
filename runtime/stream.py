"""Turning tokens into text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ingot.runtime.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BROKEN = "\ufffd"
_CONTEXT = 8


class Detokenizer:
    """Decodes one row token by token. The pieces joined are exactly the decoding of all its tokens at once.

    A decoder looks at neighbours (the first word loses its space, bytes join into characters), so every new token is
    decoded together with the few before it, and the text those had already is cut off. Text is held back while it may
    still change: in the middle of a UTF-8 character, and in a run of byte tokens, which is decoded as a whole.
    """

    def __init__(self, tokenizer: Tokenizer, *, context: Sequence[int] = (), skip_special: bool = True) -> None:
        """context: tokens the text continues, a raw prompt; then a first word keeps the space in front of it."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        """The tokens that still matter: those whose text is out but gives context, then those not out yet."""
        self._done = 0
        """How many of `_ids` are out."""
        self._text = ""
        """The text of those."""
        visible = [token for token in context[-_CONTEXT:] if self._visible(token)]
        text = tokenizer.decode(visible, skip_special=False)
        if text and not text.endswith(_BROKEN):
            self._ids, self._done, self._text = visible, len(visible), text

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is certain by now and not out yet, often empty."""
        if not self._visible(token):
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        if self._may_change(self._ids, text):
            return ""
        piece = text[len(self._text):]
        self._forget()
        self._done, self._text = len(self._ids), self._decode(self._ids)
        return piece

    def finish(self) -> str:
        """The text held back, as it stands at the end."""
        piece = self._decode(self._ids)[len(self._text):]
        self._ids, self._done, self._text = [], 0, ""
        return piece

    def _forget(self) -> None:
        """Drops tokens that were out before, if those after them have text to be cut off next time.

        A first token without text (a lone space, stripped) would pass its special treatment on to the next.
        """
        if self._decode(self._ids[self._done:]):
            self._ids = self._ids[self._done:]

    def _visible(self, token: int) -> bool:
        known = self._tokenizer.token_text(token) is not None
        return known and not (self._skip_special and token in self._tokenizer.special_ids)

    def _may_change(self, ids: Sequence[int], text: str) -> bool:
        return text.endswith(_BROKEN) or _BYTE.fullmatch(self._tokenizer.token_text(ids[-1]) or "") is not None

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=False)


class StopFinder:
    """Looks for stop strings in a stream of text and lets through only what cannot be part of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: strings that end the text; none of them may be empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """Adds text; returns what may be shown. After a stop string was found (`found`), that is always empty.

        The stop string that is complete first counts; of several ending at the same place, the longest.
        """
        if self.found is not None:
            return ""
        pending = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := pending.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return pending[:start]
        keep = self._longest_beginning(pending)
        self._held = pending[len(pending) - keep:]
        return pending[: len(pending) - keep]

    def finish(self) -> str:
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        return next((size for size in range(min(longest, len(text)), 0, -1)
                     if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
