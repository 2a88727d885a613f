"""What a pass is: a frozen dataclass of options with a kebab-case name, a contract, and `run`.

    @dataclass(frozen=True)
    class Canonicalize(Pass):
        '''Puts the graph in the form the other passes expect.'''

        name = "canonicalize"

        def run(self, module: Module, ctx: Context) -> int:
            return ctx.rewrite(module, RULES)
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Literal

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.rewrite import Miss, Rule, rewrite
from ingot.passes.journal import Journal

Contract = Literal["exact", "lossy", "cache", "edit"]

PASSES: dict[str, type[Pass]] = {}
"""Every pass by its name."""


@dataclass
class Context:
    """What a pass may use besides the module.

    calibration: batches of token ids [n, s] (i64), or None. progress: called with (done, total, what).
    misses: collects near misses of rewriting rules when a list. applied: how often each rule applied, by its name.
    details: a pass's own entries for its receipt. stage: the pass that runs, as pipeline text. journal: where a pass that takes
    long keeps what it has finished. source: what the calibration batches are made of, for receipts. teacher: the module as it
    was before the first pass that lost something (see `Pass.loses`), or None.
    """

    calibration: Any = None
    progress: Callable[[int, int, str], None] | None = None
    misses: list[Miss] | None = None
    applied: Counter[str] = field(default_factory=Counter)
    details: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    journal: Journal = field(default_factory=Journal)
    source: str = ""
    teacher: Module | None = None

    def step(self, done: int, total: int, what: str) -> None:
        """Report progress, where somebody listens."""
        if self.progress is not None:
            self.progress(done, total, what)

    def rewrite(self, module: Module, rules: Sequence[Rule]) -> int:
        """Apply rules until none fits, as `ingot.ir.rewrite.rewrite` does, and keep the counts and near misses.

        Near misses of an earlier round of the same rules are forgotten. Returns the number of sites.
        """
        found: list[Miss] | None = None if self.misses is None else []
        sites = rewrite(module, rules, misses=found, applied=self.applied)
        if self.misses is not None and found is not None:
            names = {rule.name for rule in rules}
            self.misses[:] = [miss for miss in self.misses if miss.rule not in names] + found
        return sites


class Pass(ABC):
    """One transformation of a module. Subclasses are frozen dataclasses; their fields are the options."""

    name: ClassVar[str] = ""
    contract: ClassVar[Contract] = "exact"
    """exact: the float64 reference stays within 1e-9. lossy: the error is measured. cache: decoding equals the full forward.
    edit: the model is meant to compute something else, with outputs of the same types."""
    limits: ClassVar[Mapping[str, float]] = {"relative": 1.4}
    """What `--check` allows a lossy pass: the greatest "relative" error of an output and "kl" (nats), the least "top1"."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be given: "calibration" text; a "teacher", which a pass before it that loses something leaves behind."""
    establishes: ClassVar[tuple[str, ...]] = ()
    """Facts about the module that hold afterwards ("quantized", "cached", "fused")."""
    not_after: ClassVar[Mapping[str, str]] = {}
    """Facts under which the pass is refused, each with the reason as one sentence."""
    wanted: ClassVar[bool] = False
    """Of an edit: whether the model is to compute what it does afterwards (an adapter was merged), rather than what it did."""
    may_match_nothing: ClassVar[bool] = False
    """Whether zero sites is a normal outcome (clean-up passes), rather than an error when the user named the pass."""

    def __init_subclass__(cls) -> None:
        if not cls.__dict__.get("name"):
            return
        known = PASSES.get(cls.name)
        if known is not None and _place(known) != _place(cls):  # a class of the same place is a new version of it
            raise PassError(f"there is a pass {cls.name} already: {_place(known)}", where=_place(cls), hint="choose another name")
        PASSES[cls.name] = cls

    def requires(self) -> tuple[str, ...]:
        """What must be given for these options; `needs` unless a pass says otherwise."""
        return self.needs

    @property
    def loses(self) -> bool:
        """Whether what the model computed before is what it should come near to again."""
        return self.contract == "lossy" or (self.contract == "edit" and not self.wanted)

    def look(self) -> None:  # noqa: B027  (most passes name no files)
        """Look at the files that options name, before any work starts. Raises IngotError when they are not as they should."""

    @abstractmethod
    def run(self, module: Module, ctx: Context) -> int:
        """Change the module in place; returns the number of sites changed. Raises PassError when it cannot."""

    def __str__(self) -> str:
        """The pass as pipeline text; options at their defaults are left out."""
        shown: list[str] = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value == f.default:
                continue
            shown.append(f"{option_name(f)}={_text(value)}")
        return f"{self.name}{{{' '.join(shown)}}}" if shown else self.name


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def option_name(f: Field[Any]) -> str:
    """`kv_heads` is written `kv-heads` in pipeline text."""
    return f.name.rstrip("_").replace("_", "-")


def options(cls: type[Pass]) -> list[tuple[str, Any, Any, str]]:
    """(name, type, default or MISSING, documentation) of every option of a pass."""
    hints = typing.get_type_hints(cls)
    return [(option_name(f), hints[f.name], f.default, f.metadata.get("doc", "")) for f in fields(cls)]  # type: ignore[arg-type]


def option(default: Any = MISSING, *, doc: str, choices: tuple[Any, ...] = ()) -> Any:
    """A documented option of a pass; `choices` restricts its values."""
    metadata = {"doc": doc, "choices": choices}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def make_pass(name: str, given: Mapping[str, Any]) -> Pass:
    """A pass from its name and its options as text or values. Raises PassError listing what there is."""
    cls = PASSES.get(name)
    if cls is None:
        raise PassError(f"unknown pass {name}", hint=f"passes: {', '.join(sorted(PASSES))}")
    known = {option_name(f): f for f in fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    kwargs: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise PassError(f"pass {name} has no option {key}", hint=f"options: {', '.join(known) or 'none'}")
        f = known[key]
        kwargs[f.name] = _parse(name, key, value, hints[f.name])
        choices = f.metadata.get("choices")
        if choices and kwargs[f.name] not in choices:
            raise PassError(f"{name}{{{key}={value}}}: {key} must be one of {', '.join(map(str, choices))}")
    for key, f in known.items():
        if f.name not in kwargs and f.default is MISSING and f.default_factory is MISSING:
            raise PassError(f"pass {name} needs {key}", hint=f.metadata.get("doc") or None)
    return cls(**kwargs)


def _parse(name: str, key: str, value: Any, hint: Any) -> Any:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, tuple | list) else str(value).split("+")
        return tuple(_parse(name, key, item, args[0]) for item in items)
    if not isinstance(value, str):
        return value
    kinds = [a for a in args if a is not type(None)] or [hint]
    if value == "none" and type(None) in args:
        return None
    for kind in kinds:
        if kind is bool and value in ("true", "false"):
            return value == "true"
        if kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
        if kind is str:
            return value
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise PassError(f"{name}{{{key}={value}}}: {key} takes {wanted}, not {value!r}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    return "none" if value is None else str(value)
