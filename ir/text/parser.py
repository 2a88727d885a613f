"""Parsing with lark (LALR). Errors carry line:column and the line itself; types are checked against inference."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr

import ingot.ir.ops  # noqa: F401  (registers the ops)
from ingot.errors import IngotError, ParseError
from ingot.ir.dims import LARGEST, Dim, Expr, floordiv, mod, sym, symbols
from ingot.ir.module import Func, Module
from ingot.ir.op import OPS, Op
from ingot.ir.types import DTYPES, TensorType
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight, UnknownWeight, Weight, call

_HEAD = re.compile(r"# ingot ir v(\d+)(?:, after: (.*))?")


def parse_module(text: str, *, filename: str = "<text>") -> Module:
    """The module a text describes. Raises ParseError with line:column, the source line, and what was expected."""
    head = _HEAD.match(text)
    if head and head[1] != "1":
        raise ParseError(f"this dump is version {head[1]}; this ingot reads version 1", where=filename)
    try:
        tree = _lark().parse(text)
    except UnexpectedInput as error:
        raise _at(text, filename, error.line, error.column, _expectation(error)) from None
    except _BadDim as error:
        raise _at(text, filename, error.token.line or 0, error.token.column or 0, error.message) from None
    try:
        module = _Reader(text, filename).module(tree)
    except RecursionError:
        raise ParseError("a list in this text is nested too deeply", where=filename) from None
    if head and head[2]:
        module.history = split_pipeline(head[2])
    return module


def split_pipeline(text: str) -> list[str]:
    """Pipeline text cut at the commas outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = files("ingot.ir.text").joinpath("grammar.lark").read_text()
    return Lark(grammar, parser="lalr", propagate_positions=False, maybe_placeholders=True, transformer=_Literals())


def _expectation(error: UnexpectedInput) -> str:
    if isinstance(error, UnexpectedToken):
        shown = {t.name: repr(t.pattern.value) if isinstance(t.pattern, PatternStr) else t.name.strip("_").lower()
                 for t in _lark().terminals}
        wanted = ", ".join(sorted(shown.get(name, name.strip("_").lower()) for name in error.expected)[:8])
        got = "the end" if error.token.type == "$END" else f"`{error.token}`"
        return f"unexpected {got}; expected {wanted}"
    if isinstance(error, UnexpectedCharacters):
        return f"unexpected character `{error.char}`"
    return "unexpected end of text"


def _at(text: str, filename: str, line: int, column: int, message: str) -> ParseError:
    lines = text.split("\n")
    shown = lines[line - 1] if 0 < line <= len(lines) else ""
    caret = " " * (column - 1) + "^" if column > 0 else ""
    return ParseError(f"{message}\n  {shown}\n  {caret}", where=f"{filename}:{line}:{column}")


class _BadDim(Exception):
    """A dim that cannot be (divided by zero, too large), at the operator's token."""

    def __init__(self, token: Token, message: str) -> None:
        super().__init__()
        self.token = token
        self.message = message


def _dim(token: Token, make: Callable[[], Dim]) -> Dim:
    try:
        made = make()
    except IngotError as error:
        raise _BadDim(token, error.message) from None
    if isinstance(made, int) and abs(made) >= LARGEST:
        raise _BadDim(token, "a number of more than 63 bits")
    return made


@v_args(inline=True)
class _Literals(Transformer[Token, Any]):
    """Literals, dims and types become Python values while parsing; the rest stays a tree."""

    def string(self, token: Token) -> str:
        return str(json.loads(token))

    def float(self, token: Token) -> float:
        return float(token)

    def int(self, token: Token) -> int:
        return int(token)

    def dtype(self, token: Token) -> Any:
        return DTYPES[token]

    def true(self) -> bool:
        return True

    def false(self) -> bool:
        return False

    def none(self) -> None:
        return None

    def list(self, *items: Any) -> tuple[Any, ...]:
        return items

    def sym(self, token: Token) -> Dim:
        return sym(str(token))

    def add(self, a: Dim, token: Token, b: Dim) -> Dim:
        return _dim(token, lambda: a + b)

    def sub(self, a: Dim, token: Token, b: Dim) -> Dim:
        return _dim(token, lambda: a - b)

    def mul(self, a: Dim, token: Token, b: Dim) -> Dim:
        return _dim(token, lambda: a * b)

    def neg(self, token: Token, a: Dim) -> Dim:
        return -a

    def pos(self, token: Token, a: Dim) -> Dim:
        return a

    def floordiv(self, a: Dim, token: Token, b: Dim) -> Dim:
        return _dim(token, lambda: floordiv(a, b))

    def mod(self, a: Dim, token: Token, b: Dim) -> Dim:
        return _dim(token, lambda: mod(a, b))

    def type(self, dtype: Token, *dims: Any) -> TensorType:
        return TensorType(DTYPES[dtype], () if dims == (None,) else dims)

    def field(self, key: Token, value: Any) -> tuple[Token, Any]:
        return key, value


class _Reader:
    """Builds the module from the tree."""

    def __init__(self, text: str, filename: str) -> None:
        self.text = text
        self.filename = filename
        self.result = Module()

    def fail(self, token: Token, message: str) -> ParseError:
        return _at(self.text, self.filename, token.line or 0, token.column or 0, message)

    def module(self, tree: Any) -> Module:
        name, *items = tree.children
        self.result.name = str(name[1:])
        for item in items:
            getattr(self, f"_{item.data}")(*item.children)
        return self.result

    def _dim(self, name: Token, least: Token, greatest: Token) -> None:
        if name in self.result.dims:
            raise self.fail(name, f"dimension {name} is declared twice")
        if int(least) > int(greatest):
            raise self.fail(least, f"dimension {name} has the empty range {least}..{greatest}")
        self.result.dims[str(name)] = (int(least), int(greatest))

    def _meta(self, key: Token, value: Any) -> None:
        if not isinstance(value, str | int | float):
            raise self.fail(key, f"meta {key} must be a string, a number, true or false")
        self.result.meta[str(key)] = value

    def _const(self, name: Token, type: TensorType, origin: Any) -> None:
        if name[1:] in self.result.consts:
            raise self.fail(name, f"{name} is defined twice")
        if any(isinstance(d, Expr) for d in type.dims):
            raise self.fail(name, f"{type} is no type of a weight, whose dims are fixed")
        weight: Weight
        try:
            if origin.data == "dense":
                weight = ArrayWeight(_dense(type, origin.children[0]), dtype=type.dtype)
            else:
                kind, *fields = origin.children
                weight = UnknownWeight(type, call(str(kind), **dict(f for f in fields if f is not None)))
        except (ValueError, TypeError) as error:
            raise self.fail(name, f"{name} cannot be {type}: {error}") from None
        self.result.add_const(name[1:], weight)

    def _func(self, name: Token, *parts: Any) -> None:
        if name[1:] in self.result.funcs:
            raise self.fail(name, f"func {name} is defined twice")
        func = self.result.add_func(name[1:])
        values: dict[str, Value] = {}
        results: list[Any] = []
        for part in parts:
            if part is None:
                continue
            if part.data == "param":
                token, type_ = part.children
                self.define(values, token, func.add_param(token[1:], type_))
            elif part.data == "result":
                results.append(part)
            elif part.data == "op":
                self.op(func, values, *part.children)
            else:
                tokens = [c.children[0] for c in part.children if c is not None]
                self.returns(func, values, tokens, results, name)

    def returns(self, func: Func, values: dict[str, Value], tokens: list[Token], results: list[Any], name: Token) -> None:
        func.set_returns(self.lookup(values, t) for t in tokens)
        if len(results) != len(tokens):
            raise self.fail(name, f"declares {len(results)} results, returns {len(tokens)}")
        for i, (result, value) in enumerate(zip(results, func.returns)):
            type_, _, source = result.children
            if type_ != value.type:
                raise self.fail(tokens[i], f"returns {value.type}, declared {type_}")
            if source is not None:
                func.reuse[i] = self.lookup(values, source)
                if func.reuse[i] not in func.params or func.reuse[i].type != value.type:
                    raise self.fail(source, f"a result of {value.type} cannot reuse {source}")

    def define(self, values: dict[str, Value], token: Token, value: Value) -> None:
        if token in values:
            raise self.fail(token, f"{token} is defined twice")
        for dim in value.type.dims:
            if isinstance(dim, Expr):
                unknown = [s for s in symbols(dim) if s not in self.result.dims]
                if unknown:
                    raise self.fail(token, f"dimension {unknown[0]} of {token} is not declared")
        value.hint = token[1:]
        values[str(token)] = value

    def lookup(self, values: dict[str, Value], token: Token) -> Value:
        found = self.result.consts.get(token[1:]) if token.startswith("@") else values.get(token)
        if found is None:
            raise self.fail(token, f"{token} is not defined here")
        return found

    def op(self, func: Func, values: dict[str, Value], targets: Any, name: Token, *rest: Any) -> None:
        cls = OPS.get(name)
        if cls is None:
            raise self.fail(name, f"unknown op {name}")
        *args, attrs, types, loc = rest
        kwargs = self.arguments(cls, values, name, [a for a in args if a is not None])
        for key, value in (f for f in (attrs.children if attrs is not None else ()) if f is not None):
            if not any(f.name == key and f.kind == "attr" for f in cls.fields):
                raise self.fail(key, f"{name} has no attribute {key}")
            if key in kwargs:
                raise self.fail(key, f"attribute {key} is given twice")
            kwargs[str(key)] = value
        try:
            op = cls(**kwargs)
        except IngotError as error:
            raise self.fail(name, error.message) from None
        if loc is not None:
            op.loc = str(json.loads(loc.children[0]))
        tokens = targets.children if targets is not None else []
        inferred = tuple(r.type for r in op.results)
        if tuple(types.children) != inferred:
            raise self.fail(name, f"declared {_join(types.children)}, inferred {_join(inferred)}")
        if len(tokens) != len(inferred):
            raise self.fail(name, f"{name} has {len(inferred)} results, {len(tokens)} are named")
        func.insert(op)
        for token, result in zip(tokens, op.results):
            self.define(values, token, result)

    def arguments(self, cls: type[Op], values: dict[str, Value], name: Token, args: list[Any]) -> dict[str, Any]:
        """Operands by field: those without a name in order, optional ones by name."""
        fields = [f for f in cls.fields if f.kind != "attr"]
        positional = [self.lookup(values, a.children[0]) for a in args if a.data == "value"]
        given: dict[str, Any] = {}
        if fields and fields[0].kind == "variadic":
            given[fields[0].name] = tuple(positional)
        else:
            required = [f.name for f in fields if f.kind == "operand"]
            if len(positional) != len(required):
                raise self.fail(name, f"{name} takes {len(required)} operands, {len(positional)} given")
            given.update(zip(required, positional))
        for key, value in (a.children for a in args if a.data == "named"):
            if not any(f.name == key and f.kind == "optional" for f in fields):
                raise self.fail(key, f"{name} has no optional operand {key}")
            if key in given:
                raise self.fail(key, f"operand {key} is given twice")
            given[str(key)] = self.lookup(values, value.children[0])
        return given


def _dense(type: TensorType, numbers: Any) -> np.ndarray:
    """Nested tuples of numbers as an array of an element type. Raises ValueError when they do not fit it."""
    wide = np.array(numbers, dtype=object)
    if wide.size == 0 == type.size:
        return np.zeros(type.shape, type.dtype.numpy)
    if wide.shape != type.shape:
        raise ValueError(f"the numbers have shape {list(wide.shape)}")
    kinds = {"bool": (bool,), "float": (int, float)}.get(type.dtype.kind, (int,))
    if not all(v.__class__ in kinds for v in wide.flat):
        raise ValueError("the numbers are of another kind")
    narrow = wide.astype(np.float64 if type.dtype.is_float else object).astype(type.dtype.numpy)
    if type.dtype.is_integer:
        least = -(1 << type.dtype.bits - 1) if type.dtype.kind == "int" else 0
        if not all(least <= v < least + (1 << type.dtype.bits) for v in wide.flat):
            raise ValueError(f"a number does not fit into {type.dtype}")
    return narrow


def _join(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types))
