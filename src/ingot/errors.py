"""The errors ingot raises on purpose: what is wrong, where, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


class IngotError(Exception):
    """Base of every error a user may see; printed on one screen, without a traceback.

    message: what is wrong. where: `%value`, `file:line` or a path. hint: what to do.
    """

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text = f"{self.where}: {text}"
        if self.hint:
            text = f"{text}\n  {self.hint}"
        return text


class IRError(IngotError):
    """A graph that is not well formed: wrong operand types, undefined values, unknown attributes."""


class ParseError(IngotError):
    """Text that is not ingot IR or not a pipeline; carries line and column."""


class CheckpointError(IngotError):
    """A checkpoint that is truncated, incomplete or not understood."""


class UnsupportedOp(IngotError):
    """An operator no frontend rule imports, or no backend rule lowers."""


class PassError(IngotError):
    """A pass that cannot run: impossible options, wrong order, nothing matched.

    op: the op of the graph it is about, where there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None, op: object = None) -> None:
        super().__init__(message, hint=hint, where=where)
        self.op = op


class NothingMatched(PassError):
    """A pass that should change something found nothing in the module. stage: the pass as pipeline text."""

    def __init__(self, stage: str) -> None:
        command = f"ingot explain FILE.ir --pass {shlex.quote(stage)}"
        super().__init__(f"{stage} matched nothing in this model", hint=f"see why with: {command} (FILE.ir: the stage before it)")


class ContractError(PassError):
    """A pass that broke what it promises.

    stage: the pass as pipeline text. value: the first value that went wrong, as printed after the pass. index: where in it;
    before, after: the numbers there (NaN without an index).
    """

    def __init__(self, message: str, *, stage: str, value: str | None = None, index: tuple[int, ...] | None = None,
                 before: float = float("nan"), after: float = float("nan"), where: str | None = None,
                 hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.stage = stage
        self.value = value
        self.index = index
        self.before = before
        self.after = after


class ArtifactError(IngotError):
    """An output that cannot be written, or a directory that is not a whole artifact."""


class GenerateError(IngotError):
    """A request the runtime cannot serve: prompt longer than the context, unknown option."""


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """The first few of many names, and how many there are besides, for a message."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + rest
