"""`infer` refuses what does not fit, with an IRError and nothing else, and what it accepts runs and has the inferred shape."""

from __future__ import annotations

import types
import typing
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ingot.ir.ops
from ingot.errors import IRError
from ingot.ir.dims import Dim, Expr, evaluate, substitute, sym
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.op import OPS, Op
from ingot.ir.ops.layout import Concat, Reshape, Slice
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.ops.pointwise import Add, Exp, Gelu, Where
from ingot.ir.ops.reduce import Softmax, Sum
from ingot.ir.text import print_module
from ingot.ir.types import DType, TensorType, bf16, bool_, f32, f64, i8, i64, u8
from ingot.ir.value import Value
from ingot.ir.verify import verify
from ingot.testing import examples, inputs_for

SIZES = {"B": 2, "S": 3, "T": 6}
MAY_FAIL_ON_DATA = {"pow", "cache.write"}
"""Integers to negative powers and positions beyond the cache are known only from numbers."""


def _mutated_dims(draw: st.DrawFn, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dims with one dropped, added, changed, or in another order."""
    size = st.sampled_from([1, 2, 3, 4, 6])
    at = draw(st.integers(0, max(len(dims) - 1, 0)))
    options: list[tuple[Dim, ...]] = [dims[:at] + dims[at + 1:], (*dims[:at], draw(size), *dims[at:]),
                                      (*dims[:at], draw(size), *dims[at + 1:]), dims[::-1]]
    return draw(st.sampled_from(options))


def _mutated_type(draw: st.DrawFn, type_: TensorType) -> TensorType:
    dims = _mutated_dims(draw, type_.dims) if draw(st.booleans()) else type_.dims
    dtype = draw(st.sampled_from([f32, bf16, f64, i64, i8, u8, bool_])) if draw(st.booleans()) else type_.dtype
    return TensorType(dtype, dims)


def _attribute(draw: st.DrawFn, hint: Any, old: Any) -> Any:
    """Another value of an attribute's type, near the old one where it is a tuple."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        items = list(old or ())
        change = draw(st.sampled_from(["drop", "add", "set"]))
        if change == "drop" or not items:
            return tuple(items[1:])
        return (*items, 1) if change == "add" else (draw(st.integers(-3, 4)), *items[1:])
    if args:
        return _attribute(draw, draw(st.sampled_from(args)), old)
    strategies: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(-3, 5), float: st.sampled_from([0.0, -1.0, 2.5]), bool: st.booleans(),
        str: st.sampled_from(["none", "tanh", "constant", "reflect", "int4", "int8", "no such thing"]),
        DType: st.sampled_from([f32, bf16, i64, bool_]), Expr: st.just(sym("S")), type(None): st.none()}
    return draw(strategies[hint])


def _concrete(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_concrete, value))
    return substitute(value, SIZES) if isinstance(value, Expr) else value


@st.composite
def near_misses(draw: st.DrawFn, name: str) -> tuple[Module, type[Op], dict[str, Any]]:
    """An example with some operand types and attributes changed: a module with its parameters, and the op's fields."""
    example = draw(st.sampled_from([e for e in examples() if e.cls.name == name]))
    op = example.module().main.ops[0]
    fields: dict[str, Any] = {k: _attribute(draw, next(f.type for f in op.fields if f.name == k), v)
                              if draw(st.integers(0, 3)) == 0 else v for k, v in op.attrs.items()}
    module = Module("near-miss")
    func = module.add_func("forward")

    def param(value: Value) -> Value:
        type_ = _mutated_type(draw, value.type) if draw(st.integers(0, 2)) == 0 else value.type
        return func.add_param(value.hint or "", TensorType(type_.dtype, _concrete(type_.dims)))

    fields |= {k: v for (k, _), v in zip(op.operand_fields, op.map_operands(param))}
    return module, type(op), {k: _concrete(v) for k, v in fields.items()}


@pytest.mark.parametrize("name", sorted(OPS))
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_what_infer_accepts_runs(name: str, data: st.DataObject) -> None:
    module, cls, fields = data.draw(near_misses(name))
    func = module.main
    try:
        op = cls(**fields)
    except IRError:
        return
    assume(all(evaluate(v.type.size, {}) <= 20000 for v in (*op.operands, *op.results)))
    func.insert(op)
    func.set_returns(op.results)
    verify(module)
    try:
        results = run(module, inputs_for(module, np.random.default_rng(0)))
    except IRError as error:
        if name in MAY_FAIL_ON_DATA:
            return
        raise AssertionError(f"{error}\n{print_module(module)}") from error
    assert [r.shape for r in results] == [v.type.shape for v in op.results]


def _value(dtype: DType, *dims: Dim) -> Value:
    return Value(TensorType(dtype, dims))


S = sym("S")


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Linear(_value(f32, S, 8), _value(f32, 4, 6)), r"linear\(x: f32\[S, 8\], w: f32\[4, 6\]\): x ends in"),
    (lambda: Linear(_value(f32, S, 8), None), "linear.w must be a value, not None"),
    (lambda: Linear(_value(f32, S, 8)), "linear needs w"),
    (lambda: Linear(_value(f32, S, 8), _value(f32, 4, 8), None, 3), "at most 3 arguments, 4 given"),
    (lambda: Add(_value(f32, S, 8), _value(f32, 4)), r"shapes do not broadcast: \[S, 8\] with \[4\]"),
    (lambda: Add(_value(f32), _value(f32), z=1), "add has no z"),
    (lambda: Exp(_value(i64, 3)), "takes floats; cast first"),
    (lambda: Where(_value(i64, 3), _value(f32), _value(f32)), "the condition must be bool"),
    (lambda: Softmax(_value(f32, 3), 1.5), "softmax.axis cannot be 1.5"),
    (lambda: Softmax(_value(f32, 3), axis=True), "softmax.axis cannot be True"),
    (lambda: Softmax(_value(f32, 3), 3), "no axis 3 in a tensor of rank 1"),
    (lambda: Sum(_value(f32, 3, 4), (1, -1)), "an axis is named twice"),
    (lambda: Reshape(_value(f32, S, 4), (S, 5)), "another number of elements"),
    (lambda: Reshape(_value(f32, 4), (-2, -2)), "another number of elements"),
    (lambda: Reshape(_value(f32, 4), (2, "a")), "reshape.shape cannot be"),
    (lambda: Slice(_value(f32, 4), 0, 2, 5), "positions 2 to 5 are not inside an axis of 4"),
    (lambda: Slice(_value(f32, 4), 0, 0, 4, 0), "a step of 0"),
    (lambda: Concat((), 0), "nothing to join"),
    (lambda: Concat((_value(f32, 2), _value(f64, 2))), "differ in another axis or in element type"),
    (lambda: Concat((_value(f32, 2, 3), _value(f32, 2)), 1), "differ in another axis"),
    (lambda: RmsNorm(_value(f32, S, 8), _value(f32, 4)), "w must have the last axis of x"),
    (lambda: Gelu(_value(f32, 2), "quick"), "no approximation quick"),
])
def test_refusals_say_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(IRError, match=message):
        make()


def test_attributes_have_one_form() -> None:
    """Numpy scalars, lists and integers for floats are settled, so that equal ops print equally."""
    from ingot.ir.ops.creation import Scalar
    from ingot.ir.ops.layout import Pad
    from ingot.ir.ops.reduce import Mean

    assert Mean(_value(f32, 2, 3), [np.int64(1)]).axis == (1,)
    pad = Pad(_value(f32, 2), (1, 0), 0)
    assert type(pad.value) is float
    assert type(Scalar(np.float32(1)).value) is float
    assert Scalar(True, i64).value == 1 and type(Scalar(True, i64).value) is int  # noqa: PT018
    assert Scalar(2**62 + 1, i64).reference() == 2**62 + 1


def test_ops_are_changed_by_their_func_only() -> None:
    op = Softmax(_value(f32, 3))
    with pytest.raises(AttributeError, match="only through their func"):
        op.axis = 0
    assert isinstance(op.results, tuple)
    assert isinstance(ingot.ir.ops, types.ModuleType)
