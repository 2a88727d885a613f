"""Choosing weights by name patterns: their names in the module, and those in the checkpoint of what they are made from."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence

from ingot.errors import PassError
from ingot.ir.value import Const
from ingot.ir.weights import DerivedWeight, Weight

_KEY = re.compile(r'\bkey="([^"]*)"')


def selected(consts: Iterable[Const], *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> set[Const]:
    """The weights that some pattern of `only` fits (all, where there are none) and no pattern of `skip`.

    A pattern (`*`, `?`, `[...]`) must fit a whole name. Raises PassError for one that fits none of the weights.
    """
    names = {const: {const.name, *source_names(const.weight)} for const in consts}
    for pattern in (*only, *skip):
        if not any(_fits(each, (pattern,)) for each in names.values()):
            some = ", ".join(sorted(const.name for const in names)[:3])
            raise PassError(f"no weight is named {pattern}", hint=f"names are like {some}" if some else None)
    return {const for const, each in names.items() if (not only or _fits(each, only)) and not _fits(each, skip)}


def _fits(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def source_names(weight: Weight) -> Iterator[str]:
    """The names in the origin of a weight and of those it is made from."""
    yield from _KEY.findall(weight.origin)
    if isinstance(weight, DerivedWeight):
        for source in weight.inputs:
            yield from source_names(source)
