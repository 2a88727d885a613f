"""Parsing with lark (LALR). Errors carry line:column and the line itself; types are checked against inference."""

from __future__ import annotations

import json
import re
import typing
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from lark import Lark, Token, Transformer, Tree, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

import ingot.ir.ops  # noqa: F401  (registers the ops)
from ingot.errors import IngotError, ParseError
from ingot.ir.dims import Dim, floordiv, mod, sym
from ingot.ir.module import Func, Module
from ingot.ir.op import OPS, Op, OpField
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
    module = _Reader(text, filename).module(tree)
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
        wanted = ", ".join(sorted(error.expected)[:8]).lower()
        got = "the end" if error.token.type == "$END" else f"`{error.token}`"
        return f"unexpected {got}; expected {wanted}"
    if isinstance(error, UnexpectedCharacters):
        return f"unexpected character `{error.char}`"
    return "unexpected end of text"


def _at(text: str, filename: str, line: int, column: int, message: str) -> ParseError:
    lines = text.splitlines()
    shown = lines[line - 1] if 0 < line <= len(lines) else ""
    caret = " " * (column - 1) + "^" if column > 0 else ""
    return ParseError(f"{message}\n  {shown}\n  {caret}", where=f"{filename}:{line}:{column}")


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
        return () if items == (None,) else items

    def sym(self, token: Token) -> Dim:
        return sym(str(token))

    def add(self, a: Dim, b: Dim) -> Dim:
        return a + b

    def sub(self, a: Dim, b: Dim) -> Dim:
        return a - b

    def mul(self, a: Dim, b: Dim) -> Dim:
        return a * b

    def neg(self, a: Dim) -> Dim:
        return -a

    def floordiv(self, a: Dim, b: Dim) -> Dim:
        return floordiv(a, b)

    def mod(self, a: Dim, b: Dim) -> Dim:
        return mod(a, b)

    def type(self, dtype: Token, *dims: Any) -> TensorType:
        return TensorType(DTYPES[dtype], () if dims == (None,) else dims)

    def field(self, key: Token, value: Any) -> tuple[str, Any]:
        return str(key), value


class _Reader:
    """Builds the module from the tree."""

    def __init__(self, text: str, filename: str) -> None:
        self.text = text
        self.filename = filename
        self.result = Module()

    def fail(self, token: Token, message: str) -> ParseError:
        return _at(self.text, self.filename, token.line or 0, token.column or 0, message)

    def module(self, tree: Tree[Any]) -> Module:
        name, *items = tree.children
        self.result.name = str(name)
        for item in items:
            getattr(self, f"_{item.data}")(*item.children)
        return self.result

    def _dim(self, name: Token, least: Token, greatest: Token) -> None:
        self.result.dims[str(name)] = (int(least), int(greatest))

    def _meta(self, key: Token, value: Any) -> None:
        self.result.meta[str(key)] = value

    def _const(self, name: Token, type: TensorType, origin: Tree[Any]) -> None:
        if name[1:] in self.result.consts:
            raise self.fail(name, f"{name} is defined twice")
        weight: Weight
        if origin.data == "dense":
            array = np.array(origin.children[0], dtype=object if type.dtype.bits < 8 else None)
            weight = ArrayWeight(array.astype(type.dtype.numpy))
            if weight.type != type:
                raise self.fail(name, f"the numbers have type {weight.type}, declared {type}")
        else:
            kind, *fields = origin.children
            weight = UnknownWeight(type, call(str(kind), **dict(f for f in fields if f is not None)))
        self.result.add_const(name[1:], weight)

    def _func(self, name: Token, *parts: Any) -> None:
        func = self.result.add_func(name[1:])
        values: dict[str, Value] = {}
        results: list[Tree[Any]] = []
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

    def returns(self, func: Func, values: dict[str, Value], tokens: list[Token], results: list[Tree[Any]],
                name: Token) -> None:
        func.set_returns(self.lookup(values, t) for t in tokens)
        if len(results) != len(tokens):
            raise self.fail(name, f"declares {len(results)} results, returns {len(tokens)}")
        for i, (result, value) in enumerate(zip(results, func.returns)):
            type_, _, source = result.children
            if type_ != value.type:
                raise self.fail(tokens[i], f"returns {value.type}, declared {type_}")
            if source is not None:
                func.reuse[i] = self.lookup(values, source)

    def define(self, values: dict[str, Value], token: Token, value: Value) -> None:
        if token in values:
            raise self.fail(token, f"{token} is defined twice")
        value.hint = token[1:]
        values[str(token)] = value

    def lookup(self, values: dict[str, Value], token: Token) -> Value:
        found = self.result.consts.get(token[1:]) if token.startswith("@") else values.get(token)
        if found is None:
            raise self.fail(token, f"{token} is not defined here")
        return found

    def op(self, func: Func, values: dict[str, Value], targets: Tree[Any] | None, name: Token, *rest: Any) -> None:
        cls = OPS.get(name)
        if cls is None:
            raise self.fail(name, f"unknown op {name}")
        *args, attrs, types, loc = rest
        kwargs = dict(self.arguments(cls, values, name, [a for a in args if a is not None]))
        for item in (attrs.children if attrs is not None else ()):
            if item is not None:
                key, value = item
                field = next((f for f in cls.fields if f.name == key and f.kind == "attr"), None)
                if field is None:
                    raise self.fail(name, f"{name} has no attribute {key}")
                kwargs[key] = self.coerce(name, field, value)
        try:
            op = cls(**kwargs)
        except IngotError as error:
            raise self.fail(name, error.message) from None
        if loc is not None:
            op.loc = str(json.loads(loc.children[0]))
        tokens = targets.children if targets is not None else []
        declared = tuple(types.children)
        inferred = tuple(r.type for r in op.results)
        if declared != inferred:
            raise self.fail(name, f"declared {', '.join(map(str, declared))}, inferred {', '.join(map(str, inferred))}")
        func.insert(op)
        for token, result in zip(tokens, op.results, strict=True):
            self.define(values, token, result)

    def arguments(self, cls: type[Op], values: dict[str, Value], name: Token, args: list[Tree[Any]]) -> Any:
        fields = [f for f in cls.fields if f.kind != "attr"]
        if fields and fields[0].kind == "variadic":
            yield fields[0].name, tuple(self.lookup(values, a.children[0]) for a in args)
            return
        required = [f for f in fields if f.kind == "operand"]
        positional = [a for a in args if a.data == "value"]
        if len(positional) != len(required):
            raise self.fail(name, f"{name} takes {len(required)} operands, {len(positional)} given")
        for field, arg in zip(required, positional):
            yield field.name, self.lookup(values, arg.children[0])
        for arg in args:
            if arg.data == "named":
                key, value = arg.children
                if not any(f.name == key and f.kind == "optional" for f in fields):
                    raise self.fail(key, f"{name} has no operand {key}")
                yield str(key), self.lookup(values, value.children[0])

    def coerce(self, name: Token, field: OpField, value: Any) -> Any:
        wanted = typing.get_args(field.type) if typing.get_origin(field.type) is not None else (field.type,)
        args = typing.get_args(field.type)
        if field.type is float or float in args:
            if isinstance(value, int) and not isinstance(value, bool):
                return value if "Scalar" in str(field.type) else float(value)
        if isinstance(value, tuple) != (typing.get_origin(field.type) is tuple or tuple in map(typing.get_origin, wanted)):
            raise self.fail(name, f"{name}.{field.name} cannot be {value!r}")
        for kind in (bool, str):
            if isinstance(value, kind) and field.type is not kind and kind not in args:
                raise self.fail(name, f"{name}.{field.name} cannot be {value!r}")
        return value
