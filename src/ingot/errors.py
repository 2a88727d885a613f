"""The errors ingot raises on purpose: what is wrong, where, and what to do about it."""

from __future__ import annotations


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
    """A pass that cannot run: impossible options, wrong order, nothing matched."""


class ContractError(IngotError):
    """A pass that broke what it promises."""


class ArtifactError(IngotError):
    """An output that cannot be written, or a directory that is not a whole artifact."""


class GenerateError(IngotError):
    """A request the runtime cannot serve: prompt longer than the context, unknown option."""
