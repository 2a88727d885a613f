"""The reference interpreter: sizes, precision, memory, and errors that name the op."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from ingot.errors import IRError
from ingot.ir.dims import sym
from ingot.ir.interpret import run, solve_dims
from ingot.ir.module import Builder, Module
from ingot.ir.ops.creation import Arange, Scalar
from ingot.ir.ops.layout import Take
from ingot.ir.ops.pointwise import Add, Cast, Mul, Relu
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text import parse_module
from ingot.ir.types import TensorType, bf16, f8e4m3, f16, f32, i64, u4
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight
from ingot.testing import graphs, inputs_for

B, S = sym("B"), sym("S")


def test_dims_are_solved_and_checked() -> None:
    types = [TensorType(f32, (B, S)), TensorType(f32, (2 * S, 4)), TensorType(f32, ())]
    assert solve_dims(types, [(2, 3), (6, 4), ()]) == {"B": 2, "S": 3}
    with pytest.raises(IRError, match=r"an input has 5 where f32\[2\*S, 4\] says 2\*S = 6"):
        solve_dims(types, [(2, 3), (5, 4), ()])
    with pytest.raises(IRError, match="an input has 3 where"):
        solve_dims(types, [(2, 3), (6, 3), ()])
    with pytest.raises(IRError, match=r"shape \[2\] where f32\[B, S\] is declared"):
        solve_dims(types, [(2,), (6, 4), ()])
    with pytest.raises(IRError, match="2 inputs for 3 parameters"):
        solve_dims(types, [(2, 3), (6, 4)])
    with pytest.raises(IRError, match="dimension S is 3 in one input and 4 in another"):
        solve_dims([TensorType(f32, (S,)), TensorType(f32, (S,))], [(3,), (4,)])
    with pytest.raises(IRError, match="needs a value for B, S"):
        solve_dims([TensorType(f32, (S + B,))], [(4,)])


def _third(dtype: str) -> Module:
    return parse_module(f"""module @m {{
  func @forward(%x: {dtype}[2]) -> ({dtype}[2]) {{
    %three = scalar() {{value = 3.0, dtype = {dtype}}} : {dtype}[]
    %y = div(%x, %three) : {dtype}[2]
    return %y
  }}
}}""")


@pytest.mark.parametrize(("name", "dtype"), [("f32", np.float32), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_precision(name: str, dtype: type) -> None:
    x = np.array([1.0, 2.0], dtype)
    wide, = run(_third(name), [x])
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, np.array([1.0, 2.0]) / 3)
    declared, = run(_third(name), [x], precision="declared")
    assert declared.dtype == dtype
    np.testing.assert_array_equal(declared, (np.array([1.0, 2.0], np.float32) / np.float32(3)).astype(dtype))


def test_float64_is_not_rounded_by_casts_and_ranges() -> None:
    """Exactness is judged without the rounding of element types: positions as bf16 stay what they are."""
    module = Module()
    module.set_dim("S", 1, 999)
    b = Builder(module.add_func("forward"))
    x = b.func.add_param("x", TensorType(i64, (S,)))
    b.func.set_returns([b(Cast(x, bf16)), b(Cast(b(Cast(b(Arange(S)), bf16)), f32)), b(Arange(S, dtype=bf16))])
    for array in run(module, [np.arange(300)]):
        np.testing.assert_array_equal(array, np.arange(300.0))
    assert run(module, [np.arange(300)], precision="declared")[0].astype(np.float64)[257] == 256


def test_narrow_floats_are_computed_wide() -> None:
    """Codes times an fp8 scale are exact in float64, whatever the declared result is."""
    module = Module()
    b = Builder(module.add_func("forward"))
    packed = module.add_const("p", ArrayWeight(np.array([[3, 15]], np.uint8).astype(u4.numpy)))
    scale = module.add_const("s", ArrayWeight(np.array([[0.3]], f8e4m3.numpy)))
    third = module.add_const("t", ArrayWeight(np.array(1 / 3, np.float64)))
    w = b(Dequantize(packed, scale, format="int4", group=2, dtype=f16))
    b.func.set_returns([b(Mul(w, b(Cast(third, f16))))])
    s = float(np.array(0.3, f8e4m3.numpy))
    np.testing.assert_array_equal(run(module, [])[0], [[-5 * s * (1 / 3), 7 * s * (1 / 3)]])


def test_inputs_go_by_order_or_name() -> None:
    module = parse_module("""module @m {
  func @forward(%a: f32[], %b: f32[]) -> (f32[]) {
    %y = sub(%a, %b) : f32[]
    return %y
  }
}""")
    assert run(module, [np.array(3.0), np.array(1.0)])[0] == 2
    assert run(module, {"b": np.array(3.0), "a": np.array(1.0)})[0] == -2
    with pytest.raises(IRError, match="func @forward needs an input for %a"):
        run(module, {"b": np.array(3.0)})


def test_params_weights_and_repeats_may_be_returned() -> None:
    module = Module()
    b = Builder(module.add_func("forward"))
    x = b.func.add_param("x", TensorType(f32, (2,)))
    w = module.add_const("w", ArrayWeight(np.array([5.0, 6.0], np.float32)))
    y = b(Add(x, w))
    b.func.set_returns([x, w, y, y])
    got = run(module, [np.array([1.0, 2.0])])
    assert [a.tolist() for a in got] == [[1, 2], [5, 6], [6, 8], [6, 8]]


def test_observe_sees_every_value_once() -> None:
    module = _third("f32")
    seen: list[Value] = []
    run(module, [np.ones(2)], observe=lambda value, array: seen.append(value))
    assert seen == [op.result for op in module.ops]


def test_inputs_and_weights_are_not_written_to() -> None:
    x, w = np.array([-1.0, 2.0]), np.array([1.0, 2.0])
    module = Module()
    b = Builder(module.add_func("forward"))
    b.func.set_returns([b(Relu(b(Add(b.func.add_param("x", TensorType(f32, (2,))), module.add_const("w", ArrayWeight(w))))))])
    run(module, [x])
    assert (x.tolist(), w.tolist()) == ([-1, 2], [1, 2])


def test_errors_name_the_op_and_its_place() -> None:
    module = Module()
    b = Builder(module.add_func("forward"), loc="model.py:3")
    x = b.func.add_param("x", TensorType(f32, (2,)))
    b.func.set_returns([b(Take(x, b.func.add_param("i", TensorType(i64, (1,)))))])
    with pytest.raises(IRError, match=r"take\(x: f32\[2\], index: i64\[1\]\): the reference failed: IndexError") as caught:
        run(module, [np.zeros(2), np.array([7])])
    assert caught.value.where == "model.py:3"


def test_a_reference_of_another_shape_is_found() -> None:
    module = Module()
    b = Builder(module.add_func("forward"))
    y = b(Scalar(1.0))
    y.type = TensorType(f32, (3,))
    b.func.set_returns([y])
    with pytest.raises(IRError, match=r"the reference gave shape \(\), the declared one is \(3,\)"):
        run(module, [])


@given(graphs())
def test_declared_precision_runs_everything(module: Module) -> None:
    inputs = inputs_for(module, np.random.default_rng(1))
    for value, array in zip(module.main.returns, run(module, inputs, precision="declared"), strict=True):
        assert array.dtype == value.type.dtype.numpy
