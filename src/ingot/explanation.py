"""Why a pass did or did not apply: what matched, and every near miss with the condition that failed and the line it is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError, NothingMatched, PassError

if TYPE_CHECKING:
    from ingot.ir.module import Module
    from ingot.ir.rewrite import Miss
    from ingot.ir.value import Value
    from ingot.passes.base import Pass

SHOWN = 12
"""Kinds of near misses in the text form; the JSON form has all."""
_NAME = re.compile(r"[%@][\w.\-]+")
_LONG = 150
"""Characters of a line of the graph that are shown."""


@dataclass(frozen=True)
class NearMiss:
    """A reason for which a rule did not apply, at one place or at many alike.

    rule, says: the rule and what it does. matched: how many of the `size` ops of its pattern fit; with `checked` all did
    and a condition of the rule failed. reason: why it stopped, at the first place. line: that place in the text form of
    the graph. about: the line of the value the reason is about, where it is another. loc: the source line of the value.
    places: the printed names of all places where the reason is the same.
    """

    rule: str
    says: str
    matched: int
    size: int
    checked: bool
    reason: str
    line: str
    about: str | None
    loc: str | None
    places: tuple[str, ...]

    def __str__(self) -> str:
        far = "not here" if self.size == 1 else f"{self.matched} of {self.size} ops fit, but"
        lines = [f"{self.rule}: {self.says}", f"  {far}: {self.reason}", f"    {_short(self.line)}"]
        if self.about is not None:
            lines.append(f"    {_short(self.about)}")
        if len(self.places) > 1:
            more = ", ".join(self.places[1:3]) + (", ..." if len(self.places) > 3 else "")
            lines.append(f"  x {len(self.places)} places, the first {self.places[0]}; then {more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What a pass does to a module. sites: places it changed, None when it refused. applied: sites by rewriting rule.

    refusal: why it cannot run at all, with `line`, the op that is in the way (None where it is about no op).
    misses: the most advanced first.
    """

    stage: str
    source: str
    sites: int | None
    applied: Mapping[str, int]
    refusal: str | None
    line: str | None
    misses: tuple[NearMiss, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.refusal is not None:
            return "\n".join([f"{self.stage} refuses {self.source}:", f"  {self.refusal}",
                              *([f"    {_short(self.line)}"] if self.line else [])])
        counts = ", ".join(f"{rule} {n}" for rule, n in self.applied.items())
        parts = [f"{self.stage} on {self.source}: {self.sites or 'no'} site{'s' * (self.sites != 1)}"]
        if counts:
            parts[0] += f" ({counts})"
        if not self.misses and (counts or not self.sites):
            parts.append("No rule came near another match." if counts else "No rule came near a match.")
        parts += map(str, self.misses[:SHOWN])
        if len(self.misses) > SHOWN:
            parts.append(f"... and {len(self.misses) - SHOWN} more kinds of near misses (--json gives all)")
        return "\n\n".join(parts)


def explain(model: str | Path | Module, passes: str, *, after: str | None = None) -> Explanation:
    """Run a pass on a module and tell what it did, what it nearly did, or why it refuses.

    model: a module (it stays as it is), an .ir file, `-` for standard input, or an artifact. passes: the pass as pipeline
    text; of several, those before the last are run without comment. after: the stage of an artifact to look at, by default
    what its own first run of the first pass began with, else its end. Weights of a dump have no numbers: a condition on
    them says so. Raises PassError for an unknown pass or option, and where one before the last fails.
    """
    from ingot.ir.copy import copy_module
    from ingot.ir.module import Module
    from ingot.ir.text import parse_module
    from ingot.passes.base import Context
    from ingot.passes.pipeline import check_order, parse_pipeline, run_pipeline

    pipeline = parse_pipeline(passes)
    if not pipeline:
        raise PassError("there is no pass to explain", hint="name one: ingot explain FILE.ir --pass NAME")
    if isinstance(model, Module):
        module, source = copy_module(model), f"@{model.name}"
    else:
        text, source = _read(Path(model), pipeline[0], after)
        module = parse_module(text, filename=source)
    *before, last = pipeline
    run_pipeline(module, before)
    ctx = Context(misses=[])
    try:
        check_order([last], module)
        sites: int | None = last.run(module, ctx)
    except NothingMatched:
        sites = 0
    except IngotError as error:
        where = f"{error.where}: " if error.where else ""
        op = error.op if isinstance(error, PassError) else None
        return Explanation(str(last), source, None, {}, where + error.message, _line(_names(module), op), ())
    applied = dict(ctx.applied.most_common())
    return Explanation(str(last), source, sites, applied, None, None, _grouped(module, ctx.misses or ()))


def _read(path: Path, first: Pass, after: str | None) -> tuple[str, str]:
    """The text to explain, and what it is called."""
    from ingot.dumps import dump_text, stage_before

    stage = stage_before(path, first.name) if after is None else after
    return dump_text(path, after=stage), str(path) if stage is None else f"{path} after {stage}"


def _grouped(module: Module, misses: Iterable[Miss]) -> tuple[NearMiss, ...]:
    """Near misses with the same reason as one, whatever values they name; the most advanced first."""
    named = _names(module)
    groups: dict[tuple[object, ...], list[Miss]] = {}
    for miss in misses:
        key = (miss.rule, miss.matched, miss.checked, _NAME.sub("%", miss.reason), miss.op.name)
        groups.setdefault(key, []).append(miss)
    found = [_near_miss(group, named) for group in groups.values()]
    return tuple(sorted(found, key=lambda m: (m.matched / max(m.size, 1), m.checked, m.size), reverse=True))


def _near_miss(group: list[Miss], named: dict[Value, str]) -> NearMiss:
    miss = group[0]
    value = miss.value if miss.value is not None else miss.op.results[0]
    other = value if value.op is not miss.op else None
    loc = value.op.loc if value.op is not None else miss.op.loc
    return NearMiss(miss.rule, miss.says, miss.matched, miss.size, miss.checked, miss.reason, _line(named, miss.op) or "",
                    None if other is None else _definition(named, other), loc,
                    tuple(named.get(m.op.results[0], repr(m.op.results[0])) for m in group))


def _names(module: Module) -> dict[Value, str]:
    from ingot.ir.text.printer import names

    return {value: name for func in module.funcs.values() for value, name in names(func).items()}


def _line(named: Mapping[Value, str], op: object) -> str | None:
    """An op as a line of text, by its hints when it is no longer in the graph; None for what is no op."""
    from ingot.ir.op import Op
    from ingot.ir.text.printer import print_op

    if not isinstance(op, Op):
        return None
    known = all(v in named or v.op is None for v in (*op.operands, *op.results))
    return print_op(op, dict(named) if known else None)


def _definition(named: Mapping[Value, str], value: Value) -> str:
    """Where a value comes from, as its line in the text form."""
    from ingot.ir.value import Const

    if isinstance(value, Const):
        return f"const @{value.name} : {value.type} = {value.weight.origin}"
    return _line(named, value.op) or f"{named.get(value, f'%{value.hint}')}: {value.type}, a parameter"


def _short(line: str) -> str:
    """A line cut in its middle, with its source location whole."""
    text, sign, loc = line.partition("  loc(")
    return f"{text[:_LONG]} ..." * (len(text) > _LONG) + text * (len(text) <= _LONG) + sign + loc
