"""JSON values as dataclasses: every field of the type it is declared with, however the file was damaged."""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


def record(cls: type[T], data: Any) -> T:
    """A dataclass from a JSON object whose keys are its fields.

    Fields may be of plain types, unions, tuples (from arrays), mappings with string keys, and dataclasses. A whole
    number stands for a float, but true for no number. Raises TypeError, naming the field, for another type, an unknown
    key, or one that is missing.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"an object is expected, not {data!r:.60}")
    hints = _hints(typing.cast(Hashable, cls))
    values = {key: _typed(hints[key], value, key) if key in hints else value for key, value in data.items()}
    required = [f.name for f in fields(typing.cast(Any, cls)) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [name for name in required if name not in values]:
        raise TypeError(f"there is no {', '.join(lacking)}")
    return cls(**values)


@lru_cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _typed(hint: Any, value: Any, name: str) -> Any:
    """`value` as `hint` declares it. Raises TypeError naming the field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is types.UnionType:
        for option in args:
            try:
                return _typed(option, value, name)
            except TypeError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) == len(value):
            return tuple(_typed(kind, item, name) for kind, item in zip(inner, value, strict=True))
    elif origin is not None and isinstance(value, Mapping):
        return {key: _typed(args[1], item, f"{name}.{key}") for key, item in value.items()}
    elif is_dataclass(hint):
        try:
            return value if isinstance(value, typing.cast(type, hint)) else record(typing.cast(type, hint), value)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
    elif origin is None and (isinstance(value, bool) if hint is bool else not isinstance(value, bool) and (
            isinstance(value, hint) or (hint is float and isinstance(value, int)))):
        return value
    raise TypeError(f"{name} cannot be {value!r:.60}")
