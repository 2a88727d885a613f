"""Changing a graph: use lists, the epoch, and what insert, erase, replace, retype and drop_dead promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.dims import sym
from ingot.ir.interpret import run
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.layout import Concat, Reshape, Slice, Split
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Mul, Neg, Relu
from ingot.ir.text import print_module
from ingot.ir.types import TensorType, f32, f64
from ingot.ir.value import Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.testing import copy_module, graphs, inputs_for

S = sym("S")


@pytest.fixture
def func() -> Func:
    """x -> relu(x), relu(x) * relu(x)."""
    module = Module()
    module.set_dim("S", 1, 8)
    b = Builder(module.add_func("forward"))
    x = b.func.add_param("x", TensorType(f32, (S, 4)))
    y = b(Relu(x))
    b.func.set_returns([b(Mul(y, y), "square"), y])
    return b.func


def test_a_value_knows_its_users(func: Func) -> None:
    x = func.param("x")
    relu, mul = func.ops
    assert x.users == (relu,)
    assert relu.result.users == (mul, func._return)
    assert relu.result.n_uses == 3
    assert mul.result.n_uses == 1


CHANGES: dict[str, Callable[[Func], Any]] = {
    "insert": lambda f: f.insert(Neg(f.param("x"))),
    "erase": lambda f: (f.set_returns([f.ops[0].result]), f.erase(f.ops[1])),
    "replace": lambda f: f.replace(f.ops[0].result, f.param("x")),
    "set_operand": lambda f: f.set_operand(f.ops[1], "y", f.param("x")),
    "set_returns": lambda f: f.set_returns(f.returns),
    "add_param": lambda f: f.add_param("y", TensorType(f32, ())),
    "remove_param": lambda f: f.remove_param(f.add_param("y", TensorType(f32, ()))),
    "add_const": lambda f: f.module.add_const("w", ArrayWeight(np.zeros(2))),
    "remove_const": lambda f: f.module.remove_const(f.module.add_const("w", ArrayWeight(np.zeros(2)))),
    "set_dim": lambda f: f.module.set_dim("S", 1, 9),
    "drop_dead": lambda f: (f.insert(Neg(f.param("x"))), f.drop_dead()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_moves_the_epoch(name: str, func: Func) -> None:
    before = func.module.epoch
    CHANGES[name](func)
    assert func.module.epoch > before
    func.drop_dead()
    verify(func.module)


NOTHING: dict[str, Callable[[Func], Any]] = {
    "replace by itself": lambda f: f.replace(f.param("x"), f.param("x")),
    "replace the unused": lambda f: f.replace(f.ops[1].result, f.ops[0].result) or f.replace(f.ops[1].result, f.param("x")),
    "same operand": lambda f: f.set_operand(f.ops[1], "y", f.ops[0].result),
    "same dim": lambda f: f.module.set_dim("S", 1, 8),
    "nothing dead": lambda f: f.drop_dead(),
    "same types": lambda f: f.retype(),
    "look": lambda f: (print_module(f.module), verify(f.module), f.param("x"), f.module.main),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_leaves_the_epoch(name: str, func: Func) -> None:
    if name == "replace the unused":
        func.set_returns([func.ops[0].result])
    before = func.module.epoch
    NOTHING[name](func)
    assert func.module.epoch == before


def test_insert_puts_ops_where_told(func: Func) -> None:
    x, (relu, mul) = func.param("x"), tuple(func.ops)
    first = func.insert(Neg(x), before=relu)
    second = func.insert(Neg(x), after=relu)
    last = func.insert(Neg(x), before=func._return)
    assert func.ops == [first, relu, second, mul, last]
    with pytest.raises(IRError, match="already in a func"):
        func.insert(relu)
    with pytest.raises(IRError, match="is not in func @forward"):
        func.insert(Neg(x), before=Neg(x))


def test_erase_refuses_while_used_and_names_the_users(func: Func) -> None:
    relu, mul = func.ops
    mul.loc = "model.py:7"
    with pytest.raises(IRError, match=r"still used by mul \(model.py:7\)"):
        func.erase(relu)
    verify(func.module)
    func.set_returns([func.param("x")])
    func.erase(mul)
    func.erase(relu)
    assert func.ops == []
    assert func.param("x").users == (func._return,)
    with pytest.raises(IRError, match="is not in func"):
        func.erase(relu)


def test_replace_rewires_every_user_and_keeps_the_name(func: Func) -> None:
    x, (relu, mul) = func.param("x"), tuple(func.ops)
    relu.result.hint = "gate"
    new = Builder(func, before=relu)(Neg(x))
    func.replace(relu.result, new)
    assert mul.operands == (new, new)
    assert func.returns[1] is new
    assert new.hint == "gate"
    assert new.n_uses == 3
    assert relu.result.n_uses == 0
    verify(func.module)


def test_replace_refuses_another_type(func: Func) -> None:
    relu = func.ops[0]
    with pytest.raises(IRError, match="other type"):
        func.replace(relu.result, Builder(func)(Cast(relu.result, f64)))


def test_replacing_by_what_is_made_from_it_leaves_the_maker_alone(func: Func) -> None:
    relu = func.ops[0]
    wrapped = func.insert(Neg(relu.result), after=relu)
    func.replace(relu.result, wrapped.result)
    assert wrapped.operands == (relu.result,)
    assert func.returns[1] is wrapped.result
    verify(func.module)


def test_a_shared_weight_is_replaced_in_one_func_only() -> None:
    module = Module()
    w = module.add_const("w", ArrayWeight(np.ones(4, np.float32)))
    for name in ("forward", "other"):
        b = Builder(module.add_func(name))
        b.func.set_returns([b(Neg(w))])
    x = module.main.add_param("x", w.type)
    module.main.replace(w, x)
    assert module.main.ops[0].operands == (x,)
    assert module.funcs["other"].ops[0].operands == (w,)
    verify(module)


def test_set_operand_guards_itself(func: Func) -> None:
    relu, mul = func.ops
    with pytest.raises(IRError, match="has no operand z"):
        func.set_operand(mul, "z", relu.result)
    with pytest.raises(IRError, match=r"mul\.x must be a value, not None"):
        func.set_operand(mul, "x", None)
    with pytest.raises(IRError, match="has no operand x"):
        func.set_operand(Neg(relu.result), "x", func.param("x"))
    norm = func.insert(RmsNorm(relu.result))
    w = func.module.add_const("w", ArrayWeight(np.ones(4, np.float32)))
    func.set_operand(norm, "w", w)
    assert w.users == (norm,)
    func.set_operand(norm, "w", None)
    assert not w.users
    cat = func.insert(Concat((relu.result, relu.result)))
    func.set_operand(cat, "xs", (relu.result, func.param("x")))
    assert cat.operands == (relu.result, func.param("x"))


def test_retype_follows_changed_shapes() -> None:
    module = Module()
    b = Builder(module.add_func("forward"))
    x = b.func.add_param("x", TensorType(f32, (2, 8)))
    w = module.add_const("w", ArrayWeight(np.ones((6, 8), np.float32)))
    y = b(Relu(b(Linear(x, w))))
    b.func.set_returns([y])
    linear = b.func.ops[0]
    b.func.set_operand(linear, "w", module.add_const("w", ArrayWeight(np.ones((3, 8), np.float32))))
    b.func.retype()
    assert y.type == TensorType(f32, (2, 3))
    b.func.drop_dead()
    assert list(module.consts) == ["w.1"]
    verify(module)


def test_drop_dead_takes_chains_and_unused_weights(func: Func) -> None:
    b = Builder(func)
    w = func.module.add_const("w", ArrayWeight(np.ones(4, np.float32)))
    b(Neg(b(Neg(b(Add(func.param("x"), w))))))
    b.add(Split(func.param("x"), (1, 3)))
    kept = len(func.ops)
    assert func.drop_dead() == 4
    assert len(func.ops) == kept - 4 == 2
    assert not func.module.consts
    assert func.drop_dead() == 0


@pytest.mark.parametrize("used", [0, 1])
def test_one_used_result_keeps_an_op(func: Func, used: int) -> None:
    parts = Builder(func).add(Split(func.param("x"), (1, 3))).results
    func.set_returns([parts[used]])
    assert func.drop_dead() == 2
    assert [op.name for op in func.ops] == ["split"]


def test_params_and_consts_go_only_when_unused(func: Func) -> None:
    with pytest.raises(IRError, match="%x is still used by relu"):
        func.remove_param(func.param("x"))
    with pytest.raises(IRError, match="no parameter %y"):
        func.param("y")
    y = func.add_param("y", func.returns[0].type)
    func.reuse[0] = y
    func.remove_param(y)
    assert func.reuse == {}
    w = func.module.add_const("w", ArrayWeight(np.ones((2, 4), np.float32)))
    Builder(func)(Neg(w))
    with pytest.raises(IRError, match="@w is still used by neg"):
        func.module.remove_const(w)


def test_names_of_weights_are_unique_and_printable() -> None:
    module = Module()
    names = [module.add_const(name, ArrayWeight(np.zeros(1))).name for name in ("w", "w", "a b:c", "w", "")]
    assert names == ["w", "w.1", "a_b_c", "w.2", "_"]


def test_module_main() -> None:
    module = Module()
    with pytest.raises(IRError, match="has no func @forward"):
        _ = module.main
    only = module.add_func("f")
    assert module.main is only
    forward = module.add_func("forward")
    assert module.main is forward
    with pytest.raises(IRError, match="already defined"):
        module.add_func("f")


def test_clone_maps_operands_and_changes_fields(func: Func) -> None:
    x = func.param("x")
    op = func.insert(Slice(x, 1, 0, 2))
    op.loc = "model.py:1"
    op.result.hint = "part"
    y = Value(TensorType(f32, (S, 9)))
    twin = op.clone({x: y}, stop=5)
    assert twin.operands == (y,)
    assert twin.result.type == TensorType(f32, (S, 5))
    assert (twin.loc, twin.result.hint, twin.func) == ("model.py:1", "part", None)
    assert op.attrs["stop"] == 2


def test_builder_places_names_and_locates() -> None:
    module = Module()
    func = module.add_func("forward")
    x = func.add_param("x", TensorType(f32, (4,)))
    last = Builder(func, loc="a.py:1").add(Relu(x))
    b = Builder(func, before=last)
    value = b(Reshape(x, (2, 2)), "grid")
    assert func.ops == [value.op, last]
    assert value.hint == "grid"
    assert value.op.loc == "a.py:1"


@given(graphs(), st.integers(0, 99))
def test_dropping_what_is_dead_changes_no_result(module: Module, seed: int) -> None:
    inputs = inputs_for(module, np.random.default_rng(seed))
    before = run(module, inputs)
    module.main.drop_dead()
    verify(module)
    for a, b in zip(before, run(module, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(any(r.n_uses for r in op.results) for op in module.ops)
    epoch = module.epoch
    assert module.main.drop_dead() == 0
    assert module.epoch == epoch


@given(graphs(), st.data())
def test_replacing_values_by_equal_ones_changes_no_result(module: Module, data: st.DataObject) -> None:
    """Every value in turn is replaced by a copy of the op that makes it."""
    inputs = inputs_for(module, np.random.default_rng(0))
    before = run(module, inputs)
    func = module.main
    for op in data.draw(st.lists(st.sampled_from(func.ops), max_size=4, unique=True)) if func.ops else []:
        twin = func.insert(op.clone(), after=op)
        for old, new in zip(op.results, twin.results):
            func.replace(old, new)
        verify(module)
        assert not any(r.n_uses for r in op.results)
        func.erase(op)
        verify(module)
    for a, b in zip(before, run(module, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@given(graphs())
def test_a_copy_shares_nothing_but_weights(module: Module) -> None:
    text = print_module(module)
    twin = copy_module(module)
    assert print_module(twin) == text
    verify(twin)
    assert {id(v.weight) for v in twin.consts.values()} == {id(v.weight) for v in module.consts.values()}
    twin.main.set_returns([])
    twin.main.drop_dead()
    assert print_module(module) == text
    verify(module)


def test_scalars_have_no_operands() -> None:
    assert Scalar(1.0).operands == ()
    with pytest.raises(IRError, match="split has 2 results"):
        _ = Split(Value(TensorType(f32, (4,))), (1, 3)).result
