"""Mutations of IR text whose types are put right again, so that most mutants are modules and not parse errors."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from benchmarks.fuzz.mutate import Mutate, text
from ingot.errors import IngotError
from ingot.ir.text import parse_module

REPAIRS = 6
"""Types put right at most: a change of one shape runs through the ops behind it."""


def program(pool: Sequence[str]) -> Mutate:
    """Mutates a module's text by tokens and lines, then mostly declares every type as it is inferred."""
    change = text(pool)

    def mutate(data: bytes, rng: random.Random) -> bytes:
        made = change(data, rng)
        return made if rng.random() < 0.2 else repaired(made.decode("utf-8", "replace")).encode("utf-8", "replace")

    return mutate


def repaired(source: str) -> str:
    """The text with declared types as the parser infers them, as far as REPAIRS go and that is what is wrong."""
    for _ in range(REPAIRS):
        try:
            parse_module(source)
            return source
        except IngotError as error:
            line = int((error.where or "").split(":")[1]) - 1 if (error.where or "").count(":") == 2 else -1
            said = error.message.split("\n")[0]
        except Exception:  # a finding, for the target to report
            return source
        lines = source.split("\n")
        if found := re.fullmatch(r"declared (.*), inferred (.*)", said):
            lines[line] = f" : {found[2]}".join(lines[line].rsplit(f" : {found[1]}", 1))
        elif found := re.fullmatch(r"returns (.*), declared (.*)", said):
            head = max((i for i in range(line) if lines[i].lstrip().startswith("func")), default=0)
            before, arrow, after = lines[head].rpartition("->")
            lines[head] = before + arrow + after.replace(found[2], found[1], 1)
        elif found := re.fullmatch(r"(%[\w.]+) is defined twice", said):
            lines[line] = lines[line].replace(found[1], f"{found[1]}_{len(source) % 97}", 1)
        else:
            return source
        if "\n".join(lines) == source:
            return source
        source = "\n".join(lines)
    return source
