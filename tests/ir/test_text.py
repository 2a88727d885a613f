"""The text form: printing and parsing are inverse to each other, and every mistake is reported where it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingot.errors import ParseError
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.layout import Pad
from ingot.ir.ops.pointwise import Add, Relu
from ingot.ir.text import parse_module, print_module
from ingot.ir.text.parser import split_pipeline
from ingot.ir.types import DTYPES, TensorType, f32, i64
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.testing import Example, assert_exact, examples, graphs, weights

GOLDEN = '''# ingot ir v1, after: canonicalize,fuse{norm mlp},quantize{format=int4 group=32}
module @tiny-1.5B {
  dim B in 1..8
  dim S in 1..512
  dim T in 1..512
  meta kind = "llama"
  meta context = 512
  meta theta = 10000.0
  meta tied = true
  const @embed : bf16[256, 64] = safetensors(file="model.safetensors", key="model.embed_tokens.weight")
  const @l0.qkv : u4[128, 64] = computed(pass="quantize", key="l0.qkv")
  const @l0.scale : f32[128, 2] = computed(pass="quantize", key="l0.qkv", parts=["a", 1, 0.5, false])
  const @l0.norm-1 : f32[64] = memory()
  const @inv : f32[2, 2] = dense([[1.0, 0.1], [-inf, nan]])
  const @codes : u3[3] = dense([0, 7, 3])
  const @none : i64[2, 0] = dense([[], []])
  func @forward(%ids: i64[B, S], %pos: i64[B, S], %kc0: f32[B, 2, T, 16]) -> (f32[B, S, 128], f32[B, 2, T, 16] reuse %kc0) {
    %x0 = embedding(%ids, @embed) : bf16[B, S, 64]
    %x = cast(%x0) {dtype = f32} : f32[B, S, 64]
    %n0 = rms_norm(%x, w=@l0.norm-1) {eps = 1e-05} : f32[B, S, 64]
    %w = dequantize(@l0.qkv, @l0.scale) {format = "int4", group = 32} : f32[128, 64]
    %y = linear(%n0, %w) : f32[B, S, 128]  loc("model.py:97")
    %part = slice(%y) {axis = -1, start = 0, stop = 32} : f32[B, S, 32]
    %heads = reshape(%part) {shape = [B, S, 2, 16]} : f32[B, S, 2, 16]
    %k = transpose(%heads) {perm = [0, 2, 1, 3]} : f32[B, 2, S, 16]
    %kc1 = cache.write(%kc0, %k, %pos) : f32[B, 2, T, 16]
    %lo, %hi = split(%y) {sizes = [100, 28]} : f32[B, S, 100], f32[B, S, 28]
    %z = clamp(%lo) {least = -1.0} : f32[B, S, 100]
    %cat = concat(%z, %hi) : f32[B, S, 128]
    return %cat, %kc1
  }
  func @shape() -> (i64[]) {
    %one = scalar() {value = 1, dtype = i64} : i64[]
    return %one
  }
  func @nothing(%x: f32[]) -> () {
    return
  }
}
'''


def test_golden() -> None:
    module = parse_module(GOLDEN)
    verify(module)
    assert print_module(module) == GOLDEN
    assert module.history == ["canonicalize", "fuse{norm mlp}", "quantize{format=int4 group=32}"]
    assert module.meta == {"kind": "llama", "context": 512, "theta": 10000.0, "tied": True}
    assert module.main.reuse == {1: module.main.param("kc0")}
    assert module.consts["codes"].weight.materialize().tolist() == [0, 7, 3]


@given(graphs())
def test_random_modules_read_back(module: Module) -> None:
    text = print_module(module)
    again = parse_module(text)
    verify(again)
    assert print_module(again) == text
    assert_exact(module, again, rounds=1)


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.id)
def test_every_op_reads_back(example: Example) -> None:
    text = print_module(example.module())
    assert print_module(parse_module(text)) == text


@given(st.sampled_from(sorted(DTYPES)).flatmap(lambda name: weights(TensorType(DTYPES[name], (2, 3)))))
def test_dense_weights_keep_every_bit(weight: ArrayWeight) -> None:
    module = Module()
    const = module.add_const("w", weight)
    again = parse_module(print_module(module)).consts["w"].weight
    assert again.type == const.type
    assert again.materialize().tobytes() == weight.array.tobytes()


@given(st.lists(st.floats(width=32), min_size=1, max_size=4))
def test_dense_floats_keep_every_bit(numbers: list[float]) -> None:
    module = Module()
    module.add_const("w", ArrayWeight(np.array(numbers, np.float32)))
    again = parse_module(print_module(module)).consts["w"].weight.materialize()
    np.testing.assert_array_equal(again, np.array(numbers, np.float32))


@given(st.floats() | st.integers(-2**63, 2**63 - 1), st.text(), st.text(), st.text())
def test_any_number_name_and_place_reads_back(number: float, name: str, hint: str, loc: str) -> None:
    module = Module(name)
    b = Builder(module.add_func("forward"), loc=loc)
    module.add_const(name, ArrayWeight(np.zeros(2, np.float32), source='memory(of="\\n")'))
    value = b(Scalar(number, i64 if isinstance(number, int) else f32), hint)
    module.main.set_returns([b(Add(value, value), hint)])
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    assert again.main.ops[0].attrs["value"] == number or number != number
    assert again.main.ops[0].loc == (loc or None)


def test_integers_given_for_floats_print_as_floats() -> None:
    module = Module()
    b = Builder(module.add_func("f"))
    b.func.set_returns([b(Pad(b.func.add_param("x", TensorType(f32, (2,))), (1, 1), 3))])
    assert "value = 3.0" in print_module(module)
    assert print_module(parse_module(print_module(module))) == print_module(module)


def test_names_are_made_unique() -> None:
    module = Module()
    func = module.add_func("f")
    x = func.add_param("x", TensorType(f32, (2,)))
    b = Builder(func)
    for hint in ("x", "x_1", "x", None, "a-b c"):
        x = b(Relu(x), hint)
    func.set_returns([x])
    text = print_module(module)
    named = [line.split(" = ")[0].strip() for line in text.splitlines() if " = relu" in line]
    assert named == ["%x_1", "%x_1_1", "%x_2", "%relu", "%a_b_c"]
    assert print_module(parse_module(text)) == text


def test_versions_and_history() -> None:
    with pytest.raises(ParseError, match="version 2; this ingot reads version 1"):
        parse_module("# ingot ir v2\nmodule @m {\n}\n")
    assert split_pipeline("a, b{x=1 y=p,q} ,c") == ["a", "b{x=1 y=p,q}", "c"]
    assert parse_module("module @m { }").history == []


def test_comments_and_layout_do_not_matter() -> None:
    loose = parse_module("module @m{dim S in 1..4 # dynamic\nfunc @f(%x:f32[S%2+S*2//1])->(f32[2*S+(S%2)]){return %x}}")
    assert print_module(loose).splitlines()[3] == "  func @f(%x: f32[2*S + S % 2]) -> (f32[2*S + S % 2]) {"
    assert loose.main.params[0].type.dims == (2 * sym("S") + sym("S") % 2,)


def _func(line: str, *, params: str = "%x: f32[S, 4]", result: str = "f32[S, 4]", returns: str = "%y") -> str:
    return (f"module @m {{\n  dim S in 1..8\n  const @w : f32[4] = memory()\n  func @forward({params}) -> ({result}) {{\n"
            f"    {line}\n    return {returns}\n  }}\n}}\n")


@pytest.mark.parametrize(("text", "where", "message"), [
    (_func("%y = reluu(%x) : f32[S, 4]"), "5:10", "unknown op reluu"),
    (_func("%y = relu(%x) : f32[S, 5]"), "5:10", r"declared f32\[S, 5\], inferred f32\[S, 4\]"),
    (_func("%y = relu(%z) : f32[S, 4]"), "5:15", "%z is not defined here"),
    (_func("%y = relu(@z) : f32[S, 4]"), "5:15", "@z is not defined here"),
    (_func("%x = relu(%x) : f32[S, 4]"), "5:5", "%x is defined twice"),
    (_func("%y = relu(%y) : f32[S, 4]"), "5:15", "%y is not defined here"),
    (_func("%y = relu(%x) {slope = 1.0} : f32[S, 4]"), "5:20", "relu has no attribute slope"),
    (_func("%y = clamp(%x) {least = true} : f32[S, 4]"), "5:10", "clamp.least cannot be True"),
    (_func("%y = clamp(%x) {least = 1, least = 2} : f32[S, 4]"), "5:32", "attribute least is given twice"),
    (_func("%y = softmax(%x) {axis = 1.0} : f32[S, 4]"), "5:10", "softmax.axis cannot be 1.0"),
    (_func("%y = cast(%x) {dtype = 3} : f32[S, 4]"), "5:10", "cast.dtype cannot be 3"),
    (_func("%y = cast(%x) : f32[S, 4]"), "5:10", "cast needs dtype"),
    (_func("%y = transpose(%x) {perm = 1} : f32[S, 4]"), "5:10", "transpose.perm cannot be 1"),
    (_func("%y = add(%x) : f32[S, 4]"), "5:10", "add takes 2 operands, 1 given"),
    (_func("%y = relu(%x, %x) : f32[S, 4]"), "5:10", "relu takes 1 operands, 2 given"),
    (_func("%y = rms_norm(%x, v=@w) : f32[S, 4]"), "5:23", "rms_norm has no optional operand v"),
    (_func("%y = rms_norm(%x, w=@w, w=@w) : f32[S, 4]"), "5:29", "operand w is given twice"),
    (_func("%y = add(%x, @w) : f32[S, 4], f32[S, 4]"), "5:10", "declared f32"),
    (_func("%y, %z = relu(%x) : f32[S, 4]"), "5:14", "relu has 1 results, 2 are named"),
    (_func("relu(%x) : f32[S, 4]"), "5:5", "relu has 1 results, 0 are named"),
    (_func("%y = slice(%x) {axis = 0, start = 5, stop = 3} : f32[S, 4]"), "5:10", "positions 5 to 3 are not inside"),
    (_func("%y = relu(%x) : f32[S, 4]", returns="%q"), "6:12", "%q is not defined here"),
    (_func("%y = relu(%x) : f32[S, 4]", returns="%y, %y"), "4:8", "declares 1 results, returns 2"),
    (_func("%y = relu(%x) : f32[S, 4]", result="f32[S, 5]"), "6:12", r"returns f32\[S, 4\], declared f32\[S, 5\]"),
    (_func("%y = relu(%x) : f32[S, 4]", result="f32[S, 4] reuse %y"), "4:52", "cannot reuse %y"),
    (_func("%y = relu(%x) : f32[S, 4]", params="%x: f32[S, 4], %x: f32[]"), "4:32", "%x is defined twice"),
    (_func("%y = relu(%x) : f32[S, 4]", params="%x: f32[N, 4]"), "4:17", "dimension N of %x is not declared"),
    (_func("%y = relu(%x) : f32[S, 4]", params="%x: f32[S // 0, 4]"), "4:27", "dimension S is divided by zero"),
    (_func("%y = relu(%x) : f99[S, 4]"), "5:21", "unexpected character `f`|unexpected `f99`"),
    (_func("%y = relu(%x) : f32[S, 4]  loc(5)"), "5:36", "unexpected `5`; expected string"),
    (_func("%y = relu(%x : f32[S, 4]"), "5:18", r"unexpected `:`; expected '\)'"),
    (_func('%y = gelu(%x) {approximate = "\\q"} : f32[S, 4]'), "5:34", "unexpected character `\"`"),
    ("module @m {\n  dim S in 5..4\n}\n", "2:12", "empty range 5..4"),
    ("module @m {\n  dim S in 1..4\n  dim S in 1..4\n}\n", "3:7", "dimension S is declared twice"),
    ("module @m {\n  meta x = [1]\n}\n", "2:8", "meta x must be a string, a number"),
    ("module @m {\n  const @w : f32[2] = dense([1.0, 2.0, 3.0])\n}\n", "2:9", r"the numbers have shape \[3\]"),
    ("module @m {\n  const @w : f32[2, 2] = dense([[1.0], [1.0, 2.0]])\n}\n", "2:9", "@w cannot be f32"),
    ("module @m {\n  const @w : u4[2] = dense([3, 16])\n}\n", "2:9", "a number does not fit into u4"),
    ("module @m {\n  const @w : i64[1] = dense([1.5])\n}\n", "2:9", "the numbers are of another kind"),
    ("module @m {\n  const @w : f32[1] = dense([true])\n}\n", "2:9", "the numbers are of another kind"),
    ("module @m {\n  const @w : f32[S] = memory()\n}\n", "2:9", "dims are fixed"),
    ("module @m {\n  const @w : f32[1] = memory()\n  const @w : f32[1] = memory()\n}\n", "3:9", "@w is defined twice"),
    ("module @m {\n  func @f() -> () {\n    return\n  }\n  func @f() -> () {\n    return\n  }\n}\n", "5:8",
     "func @f is defined twice"),
    ("module @m {\n", "1:11", "unexpected the end"),
    ("", "1:1", "unexpected the end"),
    ("modul @m {\n}\n", "1:1", "unexpected"),
])
def test_mistakes_are_reported_where_they_stand(text: str, where: str, message: str) -> None:
    with pytest.raises(ParseError, match=message) as caught:
        parse_module(text, filename="a.ir")
    assert caught.value.where == f"a.ir:{where}"
    line = int(where.split(":")[0])
    assert (text.split("\n")[line - 1] if text else "") in caught.value.message


@given(st.data())
def test_broken_text_gives_parse_errors_only(data: Any) -> None:
    """A dump with characters lost, doubled or changed either still reads or fails with a ParseError."""
    text = GOLDEN
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = at + data.draw(st.sampled_from([0, 1, 1, 5]))
        text = text[:at] + data.draw(st.sampled_from(["", "0", "-", "%x", "[", "]", '"', "S", "f32", "// 0", ","])) + text[end:]
    try:
        again = parse_module(text)
    except ParseError:
        return
    assert print_module(parse_module(print_module(again))) == print_module(again)
