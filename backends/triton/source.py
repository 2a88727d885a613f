"""Kernel source while it is written: nested blocks of lines, and names that are unique and speak."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager

RESERVED = frozenset({"tl", "triton", "device", "min", "max", "abs", "float", "range", "int", "INDEX", *keyword.kwlist})


class Names:
    """Unique names: a hint without what tells layers apart, so that the kernels of equal layers are equal."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, hint: str) -> str:
        name = base = plain(hint)
        while name in RESERVED or name in self._taken:
            self._taken[base] = count = self._taken.get(base, 0) + 1
            name = f"{base}{count}"
        self._taken.setdefault(name, 0)
        return name


def plain(hint: str) -> str:
    """`model.layers.3.mlp.up.weight` as `up_weight`, `mul_12` as `mul`: an identifier the same in every layer."""
    words = [re.sub(r"\W+", "_", part) for part in hint.split(".") if not part.isdigit()][-2:]
    base = re.sub(r"(?<=[a-zA-Z])_?\d+(?=_|$)", "", "_".join(words)).strip("_").lower()
    return base if base.isidentifier() else f"v_{base}".strip("_")


class Source:
    """Lines in nested blocks. A line goes into the outermost block in which all it needs is known."""

    def __init__(self) -> None:
        self.names = Names()
        self._blocks: list[list[str]] = [[]]

    @property
    def depth(self) -> int:
        return len(self._blocks) - 1

    def line(self, text: str, *, level: int | None = None) -> None:
        self._blocks[self.depth if level is None else level].append(text)

    def define(self, hint: str, text: str, *, level: int | None = None) -> str:
        """`name = text` under a new name, which is returned."""
        name = self.names.take(hint)
        self.line(f"{name} = {text}", level=level)
        return name

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A block under `head` (a for or an if)."""
        self._blocks.append([])
        try:
            yield
        finally:
            inner = self._blocks.pop()
            self.line(head)
            for text in inner or ["pass"]:
                self.line(f"    {text}")

    def lines(self, indent: str = "    ") -> list[str]:
        return [f"{indent}{line}" for line in self._blocks[0]]
