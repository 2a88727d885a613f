"""The base class of ops: typed operands and attributes declared as fields.

    class Linear(Op):
        name = "linear"
        x: Value
        w: Value
        bias: Value | None = None

A field annotated `Value`, `Value | None` or `tuple[Value, ...]` is an operand (required, optional, variadic); any other
field is an attribute. Ops are made detached, with their result types inferred, and become part of a graph when a
`Func` takes them in; after that only the func changes them.
"""

from __future__ import annotations

import copy
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import numpy as np

from ingot.errors import IRError
from ingot.ir.dims import Expr, evaluate
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.ir.axes import AxisMap
    from ingot.ir.module import Builder, Func

OPS: dict[str, type[Op]] = {}
"""Every op class by its name in dumps."""

_REQUIRED = inspect.Parameter.empty


def attr(*, kw_only: bool = True) -> Any:
    """Marks a required attribute that follows optional operands; it is given by keyword (type checkers read `kw_only`)."""
    return _REQUIRED


@dataclass(frozen=True)
class OpField:
    """One declared field: `kind` is operand, optional, variadic or attr; `type` is the annotation."""

    name: str
    kind: str
    type: Any
    default: Any


@dataclass_transform(field_specifiers=(attr,))
class Op:
    """One operation of a func; see the module docstring for how a subclass declares itself."""

    name: ClassVar[str] = ""
    commutative: ClassVar[bool] = False
    fields: ClassVar[tuple[OpField, ...]] = ()
    axes: ClassVar[str] = ""
    """The axis map in index notation, when it does not depend on attributes; see `ingot.ir.axes`."""

    results: tuple[Value, ...]
    func: Func | None
    loc: str | None

    def __init_subclass__(cls) -> None:
        own = inspect.get_annotations(cls, eval_str=True)
        fields = {f.name: f for f in cls.fields}
        for name, hint in own.items():
            if typing.get_origin(hint) is ClassVar:  # type: ignore[comparison-overlap]
                continue
            default = cls.__dict__.get(name, _REQUIRED)
            fields[name] = OpField(name, _kind(hint), hint, default)
        cls.fields = tuple(fields.values())
        if cls.__dict__.get("name"):
            if cls.name in OPS:
                raise TypeError(f"op {cls.name} is defined twice: {OPS[cls.name]} and {cls}")
            OPS[cls.name] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self.fields):
            raise IRError(f"{self.name} takes at most {len(self.fields)} arguments, {len(args)} given")
        given = dict(zip((f.name for f in self.fields), args)) | kwargs
        for field in self.fields:
            value = given.pop(field.name, field.default)
            if value is _REQUIRED:
                raise IRError(f"{self.name} needs {field.name}")
            self.__dict__[field.name] = self._settle(field, value)
        if given:
            raise IRError(f"{self.name} has no {', '.join(sorted(given))}")
        self.__dict__["func"] = None
        self.__dict__["loc"] = None
        inferred = self._infer()
        self.__dict__["results"] = tuple(Value(t, op=self, hint=self.name.split(".")[-1]) for t in inferred)

    def _settle(self, field: OpField, value: Any) -> Any:
        """A field's value in its one form (tuples, floats where floats are declared), so that equal ops print equally."""
        if field.kind == "attr":
            value = _plain(value, field.type)
            if not _fits(value, field.type):
                raise IRError(f"{self.name}.{field.name} cannot be {value!r}")
            return value
        if field.kind == "variadic":
            value = tuple(value)
        if not all(isinstance(v, Value) for v in (value if isinstance(value, tuple) else (value,))) and not (
                field.kind == "optional" and value is None):
            raise IRError(f"{self.name}.{field.name} must be a value, not {value!r}")
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("func", "loc", "results"):
            self.__dict__[name] = value
        else:
            raise AttributeError(f"ops change only through their func (setting {self.name}.{name})")

    # --- what a subclass says -------------------------------------------------------------------------------------

    def infer(self) -> TensorType | tuple[TensorType, ...]:
        """Result types from operand types and attributes. Raises IRError when the operands do not fit."""
        raise NotImplementedError(f"{self.name}.infer")

    def reference(self, *inputs: Any, **_: Any) -> Any:
        """The op's definition on numpy arrays: one argument per operand field (None when absent, a tuple when variadic).

        Floating inputs arrive as float32 or float64, never narrower; results are rounded to the declared type by
        the caller. Dims among the attributes are plain integers here.
        """
        raise NotImplementedError(f"{self.name}.reference")

    def decompose(self, b: Builder) -> Value | tuple[Value, ...] | None:
        """The same computation in simpler ops, built with `b`; None when the op is primitive."""
        return None

    def axis_map(self) -> AxisMap:
        """Which axis of which operand becomes which axis of which result."""
        from ingot.ir.axes import parse_axes

        return parse_axes(self)

    # --- what every op has ----------------------------------------------------------------------------------------

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise IRError(f"{self.name} has {len(self.results)} results")
        return self.results[0]

    @property
    def operands(self) -> tuple[Value, ...]:
        """All operands in field order, absent ones left out."""
        return tuple(self._operands())

    def _operands(self) -> Iterator[Value]:
        for field in self.fields:
            if field.kind == "attr":
                continue
            value = self.__dict__[field.name]
            if field.kind == "variadic":
                yield from value
            elif value is not None:
                yield value

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by name, defaults included."""
        return {f.name: self.__dict__[f.name] for f in self.fields if f.kind == "attr"}

    @property
    def operand_fields(self) -> tuple[tuple[str, Value | tuple[Value, ...] | None], ...]:
        return tuple((f.name, self.__dict__[f.name]) for f in self.fields if f.kind != "attr")

    def map_operands(self, fn: Callable[[Value], Any]) -> tuple[Any, ...]:
        """`fn` over the operands, keeping the structure `reference` expects (None and tuples in place)."""
        out: list[Any] = []
        for _, value in self.operand_fields:
            out.append(tuple(map(fn, value)) if isinstance(value, tuple) else None if value is None else fn(value))
        return tuple(out)

    def clone(self, mapping: Mapping[Value, Value] | None = None, **changes: Any) -> Op:
        """A detached copy with operands mapped and fields changed; types are inferred anew."""
        mapping = mapping or {}
        kwargs = self.attrs
        for (name, _), new in zip(self.operand_fields, self.map_operands(lambda v: mapping.get(v, v))):
            kwargs[name] = new
        twin = type(self)(**(kwargs | changes))
        twin.loc = self.loc
        for mine, its in zip(self.results, twin.results):
            its.hint = mine.hint
        return twin

    def bind(self, env: Mapping[str, int]) -> Op:
        """A shallow copy whose dim attributes are integers, for running; not part of any graph."""
        bound = copy.copy(self)
        for field in self.fields:
            if field.kind == "attr":
                bound.__dict__[field.name] = _bound(self.__dict__[field.name], env)
        return bound

    def _infer(self) -> tuple[TensorType, ...]:
        types = self.infer()
        return types if isinstance(types, tuple) else (types,)

    def need_floats(self, *values: Value | None) -> None:
        """Raises IRError when one of the given operands is not a float tensor."""
        if not all(v is None or v.type.dtype.is_float for v in values):
            raise self.fail("takes floats; cast first")

    def fail(self, message: str) -> IRError:
        """An IRError about this op, naming its operand types and source line."""
        shown = ", ".join(f"{name}: {_types(value)}" for name, value in self.operand_fields if value is not None)
        return IRError(f"{self.name}({shown}): {message}", where=self.loc)

    def __repr__(self) -> str:
        return f"<{self.name} {', '.join(map(repr, self.results))}>"


def _kind(hint: Any) -> str:
    if hint is Value or hint is Const:
        return "operand"
    args = typing.get_args(hint)
    if isinstance(hint, types.UnionType) and Value in args:
        return "optional"
    return "variadic" if args and args[0] is Value else "attr"


def _plain(value: Any, hint: Any) -> Any:
    """Numpy scalars as Python numbers, lists as tuples, integers as floats where only floats are declared.

    A bool is a number only where any number will do.
    """
    if isinstance(value, list | tuple):
        inner = (*typing.get_args(hint), hint)[0]
        return tuple(_plain(v, inner) for v in value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        wanted = typing.get_args(hint) or (hint,)
        if isinstance(value, bool):
            return int(value) if int in wanted and float in wanted else value
        return float(value) if float in wanted and int not in wanted else value
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an attribute's declared type."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if args:
        return any(_fits(value, a) for a in args)
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)


def _bound(value: Any, env: Mapping[str, int]) -> Any:
    if isinstance(value, Expr):
        return evaluate(value, env)
    return tuple(_bound(v, env) for v in value) if isinstance(value, tuple) else value


def _types(value: Value | tuple[Value, ...]) -> str:
    return f"({', '.join(str(v.type) for v in value)})" if isinstance(value, tuple) else str(value.type)


class Return(Op):
    """The end of a func; its operands are the func's results."""

    values: tuple[Value, ...]

    def infer(self) -> tuple[TensorType, ...]:
        return ()


