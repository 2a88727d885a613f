"""Passes from outside: modules and files the user names, and entry points of installed packages.

A plugin is a module whose `Pass` subclasses register themselves on import. A package makes its own known by

    [project.entry-points."ingot.passes"]
    my-passes = "my_package.passes"
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import is_dataclass

from ingot.errors import IngotError, PassError
from ingot.importing import import_user_module
from ingot.passes.base import PASSES, Pass

GROUP = "ingot.passes"
"""The entry point group of installed plugins."""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def load_plugins(modules: Sequence[str] = ()) -> list[str]:
    """Register the passes of installed plugins, then those of `modules`; returns the names of passes that are new.

    modules: dotted names (the working directory counts) or paths of .py files; one that was loaded before is not loaded
    again. Raises PassError for a plugin that cannot be imported, defines no pass, or one that is broken or whose name is
    taken.
    """
    from importlib.metadata import entry_points

    import ingot.passes.all  # noqa: F401  (a plugin's name must not be one of these)

    before = set(PASSES)
    for entry in entry_points(group=GROUP):
        package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        _load(entry.module, f"installed plugin {entry.name}{package}")
    for module in modules:
        _load(module, f"plugin {module}")
    return sorted(set(PASSES) - before)


def _load(module: str, what: str) -> None:
    before = dict(PASSES)
    try:
        name = import_user_module(module).__name__
    except IngotError as error:
        reason = error.message.removeprefix(f"cannot import {module}: ")
        raise PassError(f"{what}: {reason}", where=error.where, hint=error.hint) from error
    own = [cls for key, cls in PASSES.items() if before.get(key) is not cls or f"{cls.__module__}.".startswith(f"{name}.")]
    if not own:
        raise PassError(f"{what} defines no pass", hint="a pass is a frozen dataclass derived from ingot.passes.base.Pass")
    for cls in own:
        _check(cls, what)


def _check(cls: type[Pass], what: str) -> None:
    """Raises PassError for a class that no pipeline could use."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not _NAME.fullmatch(cls.name):
        raise PassError(f"{what}: {cls.name!r} is no name for a pass", where=where, hint="names are kebab-case: fold-my-scales")
    if not is_dataclass(cls):
        raise PassError(f"{what}: pass {cls.name} is no dataclass", where=where, hint="write @dataclass(frozen=True) above it")
    if inspect.isabstract(cls):
        raise PassError(f"{what}: pass {cls.name} has no run", where=where, hint="define run(self, module, ctx) -> int")
