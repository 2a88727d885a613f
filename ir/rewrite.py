"""Rewriting: rules applied over a func until nothing fits any more, with every near miss recorded on request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ingot.errors import IRError
from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.pattern import Either, Elsewhere, Match, NoMatch, P, Pattern, matches, nearest
from ingot.ir.value import Value


class Rule(ABC):
    """A stateless rewrite: where `pattern` fits and `check` does not object, `build` makes the replacement."""

    pattern: ClassVar[Pattern]

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def says(self) -> str:
        """What the rule does: the first paragraph of its docstring."""
        return " ".join((self.__doc__ or "").split("\n\n")[0].split())

    def check(self, m: Match) -> None:  # noqa: B027  (most rules have nothing to add to their pattern)
        """Raises NoMatch(reason, value) when the rule must not apply here. May add to `m.extra`."""

    @abstractmethod
    def build(self, m: Match, b: Builder) -> Value | tuple[Value, ...]:
        """The replacement for the results of `m.op`, of the same types, built before it."""


@dataclass(frozen=True)
class Miss:
    """A rule that began to fit and did not: how far it came, why it stopped, and at which value.

    rule, says: the rule's name and what it does. op: the op it began at. matched: how many ops of its pattern's `size` fit;
    with `checked` all did, and a condition of the rule failed.
    """

    rule: str
    says: str
    op: Op
    matched: int
    size: int
    checked: bool
    reason: str
    value: Value | None


def rewrite(module: Module, rules: Sequence[Rule], *, misses: list[Miss] | None = None, applied: Counter[str] | None = None,
            rounds: int = 16) -> int:
    """Apply rules to all funcs until none fits; returns the number of sites rewritten.

    misses: filled with the near misses of the last round. applied: counts sites by the rule's name.
    Raises IRError when the rules do not come to an end.
    """
    count = Counter[str]() if applied is None else applied
    total = 0
    for _ in range(rounds):
        if misses is not None:
            misses.clear()
        sites = sum(_sweep(func, rules, misses, count) for func in module.funcs.values())
        if not sites:
            return total
        total += sites
        for func in module.funcs.values():
            func.drop_dead()
    raise IRError(f"rules {', '.join(r.name for r in rules)} still apply after {rounds} rounds")


def _sweep(func: Func, rules: Sequence[Rule], misses: list[Miss] | None, applied: Counter[str]) -> int:
    sites = 0
    by_class: dict[type[Op], list[Rule]] = {}
    for op in list(func.ops):
        if op.func is None or not any(r.n_uses for r in op.results):
            continue
        if type(op) not in by_class:
            by_class[type(op)] = [r for r in rules if _may_start(r.pattern, type(op))]
        for rule in by_class[type(op)]:
            try:
                m = _checked(rule, op)
            except NoMatch as miss:
                if misses is not None and not isinstance(miss, Elsewhere):
                    misses += _near(rule, op, miss)
                continue
            new = rule.build(m, Builder(func, before=op))
            for old, value in zip(op.results, new if isinstance(new, tuple) else (new,), strict=True):
                func.replace(old, value)
            sites += 1
            applied[rule.name] += 1
            break
    return sites


def _near(rule: Rule, op: Op, miss: NoMatch) -> Iterator[Miss]:
    """The miss as it is recorded: where a check objected, or else more than half of the pattern fits."""
    size = rule.pattern.size
    if miss.matched is None:
        yield Miss(rule.name, rule.says, op, size, size, True, miss.reason, miss.value)
        return
    other = nearest(rule.pattern, op)
    miss = other if other is not None and (other.matched or 0) > miss.matched else miss
    matched = min(miss.matched or 0, size)
    if matched > 1 and 2 * matched > size:
        yield Miss(rule.name, rule.says, op, matched, size, False, miss.reason, miss.value)


def _checked(rule: Rule, op: Op) -> Match:
    """The first way the rule's pattern fits that its check lets pass. Raises the NoMatch of the first way otherwise."""
    objection: NoMatch | None = None
    for m in matches(rule.pattern, op):
        try:
            rule.check(m)
            return m
        except NoMatch as miss:
            objection = objection or miss
    assert objection is not None
    raise objection


def _may_start(pattern: Pattern, cls: type[Op]) -> bool:
    if isinstance(pattern, Either):
        return any(_may_start(option, cls) for option in pattern.options)
    return not isinstance(pattern, P) or issubclass(cls, pattern.cls)
