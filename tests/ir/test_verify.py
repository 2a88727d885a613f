"""The verifier finds each way in which a module can be malformed. Modules are broken behind the API's back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.errors import IRError
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.layout import Slice
from ingot.ir.ops.pointwise import Add, Neg, Relu
from ingot.ir.types import TensorType, f32, f64
from ingot.ir.value import Const, Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.testing import graphs

S = sym("S")


def sound() -> Func:
    """x, y -> relu(x) + w, a slice of y."""
    module = Module()
    module.set_dim("S", 1, 8)
    b = Builder(module.add_func("forward"))
    x = b.func.add_param("x", TensorType(f32, (S, 4)))
    y = b.func.add_param("y", TensorType(f32, (S, 4)))
    w = module.add_const("w", ArrayWeight(np.ones(4, np.float32)))
    total = b(Add(b(Relu(x)), w))
    b.func.set_returns([total, b(Slice(y, 0, 0, S))])
    b.func.reuse[1] = y
    return b.func


def _swap(f: Func) -> None:
    f.ops[0], f.ops[1] = f.ops[1], f.ops[0]


def _foreign(f: Func) -> None:
    f.set_operand(f.ops[1], "y", Const("w", ArrayWeight(np.ones(4, np.float32))))


def _unknown_operand(f: Func) -> None:
    f.set_operand(f.ops[0], "x", Value(TensorType(f32, (S, 4)), hint="stray"))


def _wrong_type(f: Func) -> None:
    f.ops[0].results[0].type = TensorType(f64, (S, 4))


def _lost_use(f: Func) -> None:
    f.params[0]._users.clear()


def _extra_use(f: Func) -> None:
    f.module.consts["w"]._use(f.ops[0])


def _two_reuse(f: Func) -> None:
    f.reuse[0] = f.reuse[1]


def _lost_op(f: Func) -> None:
    f.ops[0].results[0].op = None


def _undeclared(f: Func) -> None:
    del f.module.dims["S"]


def _undeclared_attribute(f: Func) -> None:
    Builder(f)(Slice(f.params[0], 0, sym("N") - 1, sym("N")))


def _replaced_weight(f: Func) -> None:
    f.module.consts["w"].weight = ArrayWeight(np.ones(5, np.float32))


MISTAKES: dict[str, tuple[Callable[[Func], object], str]] = {
    "order": (_swap, "%relu: f32.S, 4. is used before it is defined"),
    "other module's weight": (_foreign, "@w is not a weight of this module"),
    "undefined": (_unknown_operand, "%stray: f32.S, 4. is used before it is defined"),
    "type": (_wrong_type, r"inferred f32\[S, 4\]"),
    "lost use": (_lost_use, "counts 0 uses, there are 1"),
    "extra use": (_extra_use, "counts 2 uses, there are 1"),
    "undeclared symbol": (_undeclared, "dimension S is not declared"),
    "undeclared symbol in an attribute": (_undeclared_attribute, "slice.start: dimension N is not declared"),
    "empty range": (lambda f: f.module.dims.update(S=(4, 3)), "dimension S has the empty range 4..3"),
    "negative range": (lambda f: f.module.dims.update(S=(-1, 3)), "empty range"),
    "name of a dim": (lambda f: f.module.dims.update({"a b": (1, 2)}), "'a b' cannot be the name of a dimension"),
    "reserved dim": (lambda f: f.module.dims.update(none=(1, 2)), "'none' cannot be"),
    "weight's type": (_replaced_weight, r"@w is f32\[4\], its weight f32\[5\]"),
    "weight's key": (lambda f: f.module.consts.update(v=f.module.consts["w"]), "no name that can be printed"),
    "weight's name": (lambda f: f.module.consts.update({"a b": Const("a b", ArrayWeight(np.ones(1)))}), "@a b is no name"),
    "func's name": (lambda f: f.module.funcs.update({"a b": f}), "no name that can be printed"),
    "other module's func": (lambda f: setattr(f, "module", Module()), "belongs to another module"),
    "op of another func": (lambda f: setattr(f.ops[0], "func", None), "does not know its func"),
    "result of another op": (_lost_op, "does not know its op"),
    "twice a parameter": (lambda f: f.params.append(f.params[0]), "cannot be a parameter"),
    "reuse of a result": (lambda f: f.reuse.update({0: f.returns[0]}), "result 0 cannot reuse"),
    "reuse beyond the results": (lambda f: f.reuse.update({2: f.params[0]}), "result 2 cannot reuse"),
    "reuse of another type": (lambda f: f.reuse.update({0: f.add_param("z", TensorType(f32, ()))}), "result 0 cannot reuse"),
    "reuse by two": (_two_reuse, "two results reuse one parameter"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_found(name: str) -> None:
    func = sound()
    module = func.module
    verify(module)
    spoil, message = MISTAKES[name]
    spoil(func)
    with pytest.raises(IRError, match=message):
        verify(module)


def test_the_place_is_named() -> None:
    func = sound()
    func.ops[1].loc = "model.py:97"
    _swap(func)
    with pytest.raises(IRError) as caught:
        verify(func.module)
    assert caught.value.where == "model.py:97"


def test_a_weight_used_by_two_funcs_counts_its_uses_over_both() -> None:
    func = sound()
    b = Builder(func.module.add_func("other"))
    b.func.set_returns([b(Neg(func.module.consts["w"]))])
    verify(func.module)
    func.module.consts["w"]._use(b.func.ops[0])
    with pytest.raises(IRError, match="counts 3 uses, there are 2"):
        verify(func.module)


@given(graphs(), st.data())
def test_a_random_module_out_of_order_is_found(module: Module, data: st.DataObject) -> None:
    ops = module.main.ops
    used = [i for i, op in enumerate(ops) if any(isinstance(u, Op) and u in ops for r in op.results for u in r.users)]
    if not used:
        return
    ops.append(ops.pop(data.draw(st.sampled_from(used))))
    with pytest.raises(IRError, match="used before it is defined"):
        verify(module)
