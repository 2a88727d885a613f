"""Folded weights: computed on demand in their own element type, and without rounding for the float64 reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ingot.ir.interpret import run
from ingot.ir.text import parse_module
from ingot.ir.value import Const
from ingot.ir.weights import ArrayWeight, DerivedWeight, FileWeight
from ingot.passes.base import Context
from ingot.passes.cleanup.cse import Cse
from ingot.passes.cleanup.fold_constants import FoldConstants

GEMMA = """module @m {
  const @w : bf16[3] = file(key="w")
  func @forward(%x: f32[3]) -> (f32[3]) {
    %wide = cast(@w) {dtype = f32} : f32[3]
    %third = scalar() {value = 0.3333333333333333} : f32[]
    %sum = add(%wide, %third) : f32[3]
    %y = mul(%x, %sum) : f32[3]
    return %y
  }
}"""


def test_declared_type_and_no_rounding_in_between():
    module = parse_module(GEMMA)
    w = np.array([1.0, -2.5, 0.125], ml_dtypes.bfloat16)
    module.consts["w"].weight = ArrayWeight(w)
    FoldConstants().run(module, Context())
    [const] = module.consts.values()
    assert isinstance(const.weight, DerivedWeight)
    narrow, wide = const.weight.materialize(), const.weight.wide()
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, w.astype(np.float32) + np.float32(1 / 3))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, w.astype(np.float64) + 1 / 3, rtol=1e-15)


def test_narrow_floats_are_added_up_in_32_bits():
    """In bf16 the sum of ones ends at 256."""
    module = parse_module("""module @m {
      const @w : bf16[601] = file(key="w")
      func @forward() -> (bf16[1]) {
        %s = sum(@w) {axis = [0], keep = true} : bf16[1]
        return %s
      }
    }""")
    module.consts["w"].weight = ArrayWeight(np.ones(601, ml_dtypes.bfloat16))
    FoldConstants().run(module, Context())
    [made] = module.main.returns
    assert run(module, [])[0] == 601
    assert isinstance(made, Const)
    assert made.weight.materialize() == ml_dtypes.bfloat16(601)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.uint4, np.float32])
def test_moves_keep_any_element_type(dtype):
    name = {"bfloat16": "bf16", "uint4": "u4", "float32": "f32"}[np.dtype(dtype).name]
    module = parse_module(f"""module @m {{
      const @w : {name}[2, 3] = file(key="w")
      func @forward() -> ({name}[3, 2]) {{
        %t = transpose(@w) {{perm = [1, 0]}} : {name}[3, 2]
        return %t
      }}
    }}""")
    array = np.array([[1, 2, 3], [4, 5, 6]]).astype(dtype)
    module.consts["w"].weight = ArrayWeight(array)
    FoldConstants().run(module, Context())
    [const] = module.consts.values()
    made = const.weight.materialize()
    assert made.dtype == array.dtype
    np.testing.assert_array_equal(made, array.T)


def test_one_tensor_of_a_file_is_one_weight(tmp_path):
    module = parse_module("""module @m {
      const @a : f32[2] = file(key="a")
      const @b : f32[2] = file(key="b")
      const @c : f32[2] = file(key="c")
      func @forward(%x: f32[2]) -> (f32[2]) {
        %p = mul(%x, @a) : f32[2]
        %q = mul(%p, @b) : f32[2]
        %r = mul(%q, @c) : f32[2]
        return %r
      }
    }""")
    for name, key in (("a", "tied"), ("b", "tied"), ("c", "other")):
        module.consts[name].weight = FileWeight(tmp_path / "model.safetensors", key, module.consts[name].type)
    assert Cse().run(module, Context()) == 1
    assert sorted(module.consts) == ["a", "c"]
