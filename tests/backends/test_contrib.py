"""onnxruntime's own kernels against the float64 reference: grouped attention over a cache, packed weights, int8 rows."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ingot.backends.onnx.session import open_session
from ingot.backends.onnx.session import run as run_onnx
from ingot.backends.onnx.writer import write
from ingot.ir.interpret import run as run_reference
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.runtime.ort import Graph
from ingot.runtime.prefill import prefill_weights

ATTENTION = """
module @block {
  dim B in 1..8
  dim S in 1..64
  dim T in 1..64
  const @w : f32[128, 64] = memory(key="w")
  const @freq : f32[ROT] = memory(key="freq")
  const @sinks : f32[4] = memory(key="sinks")
  const @kstep : f32[1, 2, 1, 16] = memory(key="kstep")
  const @vstep : f32[1, 2, 1, 16] = memory(key="vstep")
  func @forward(%x: f32[B, S, 64], %pos: i64[B, S], %kc: CACHE[B, 2, T, 16], %vc: CACHE[B, 2, T, 16])
      -> (f32[B, S, 64], CACHE[B, 2, T, 16] reuse %kc, CACHE[B, 2, T, 16] reuse %vc) {
    %qkv = linear(%x, @w) : f32[B, S, 128]
    %q0, %k0, %v0 = split(%qkv) {sizes = [64, 32, 32]} : f32[B, S, 64], f32[B, S, 32], f32[B, S, 32]
    %q1 = reshape(%q0) {shape = [B, S, 4, 16]} : f32[B, S, 4, 16]
    %q2 = transpose(%q1) {perm = [0, 2, 1, 3]} : f32[B, 4, S, 16]
    %q = rope(%q2, %pos, @freq) {interleaved = INTER} : f32[B, 4, S, 16]
    %k1 = reshape(%k0) {shape = [B, S, 2, 16]} : f32[B, S, 2, 16]
    %k2 = transpose(%k1) {perm = [0, 2, 1, 3]} : f32[B, 2, S, 16]
    %k = rope(%k2, %pos, @freq) {interleaved = INTER} : f32[B, 2, S, 16]
    %v1 = reshape(%v0) {shape = [B, S, 2, 16]} : f32[B, S, 2, 16]
    %v = transpose(%v1) {perm = [0, 2, 1, 3]} : f32[B, 2, S, 16]
WRITE
    %a = attention(%q, %kr, %vr, pos=%posSINKS) {scale = 0.25, causal = trueEXTRA} : f32[B, 4, S, 16]
    %a1 = transpose(%a) {perm = [0, 2, 1, 3]} : f32[B, S, 4, 16]
    %a2 = reshape(%a1) {shape = [B, S, 64]} : f32[B, S, 64]
    return %a2, %kn, %vn
  }
}
"""
PLAIN = """    %kn = cache.write(%kc, %k, %pos) : f32[B, 2, T, 16]
    %vn = cache.write(%vc, %v, %pos) : f32[B, 2, T, 16]
    %kr = reshape(%kn) {shape = [B, 2, T, 16]} : f32[B, 2, T, 16]
    %vr = reshape(%vn) {shape = [B, 2, T, 16]} : f32[B, 2, T, 16]"""
INT8 = "\n".join(f"""    %{c}d = div(%{c}, @{c}step) : f32[B, 2, S, 16]
    %{c}q = round(%{c}d) : f32[B, 2, S, 16]
    %{c}l = clamp(%{c}q) {{least = -128.0, greatest = 127.0}} : f32[B, 2, S, 16]
    %{c}i = cast(%{c}l) {{dtype = i8}} : i8[B, 2, S, 16]
    %{c}n = cache.write(%{c}c, %{c}i, %pos) : i8[B, 2, T, 16]
    %{c}f = cast(%{c}n) {{dtype = f32}} : f32[B, 2, T, 16]
    %{c}r = mul(%{c}f, @{c}step) : f32[B, 2, T, 16]""" for c in "kv")


def block(*, extra: str = "", sinks: bool = False, int8: bool = False, rotary: int = 8, interleaved: bool = False) -> Module:
    text = ATTENTION.replace("WRITE", INT8 if int8 else PLAIN).replace("CACHE", "i8" if int8 else "f32")
    text = text.replace("EXTRA", extra).replace("posSINKS", "pos, sinks=@sinks" if sinks else "pos")
    text = text.replace("ROT", str(rotary)).replace("INTER", "true" if interleaved else "false")
    module = parse_module(text)
    rng = np.random.default_rng(0)
    given = {"w": rng.standard_normal((128, 64)) * 0.2, "freq": 1.0 / 10 ** np.arange(rotary), "sinks": rng.standard_normal(4),
             "kstep": rng.uniform(0.02, 0.05, (1, 2, 1, 16)), "vstep": rng.uniform(0.02, 0.05, (1, 2, 1, 16))}
    for name, array in given.items():
        module.consts[name].weight = ArrayWeight(array.astype(np.float32))
    run_pipeline(module, parse_pipeline("canonicalize,dce"))
    return module


def op_types(module: Module, folder: Path, **options: object) -> list[str]:
    written = write(module, folder, **options)  # type: ignore[arg-type]
    return [n.op_type for n in onnx.load(written.model, load_external_data=False).graph.node]


VARIANTS = {
    "plain": {}, "window": {"extra": ", window = 3"}, "softcap": {"extra": ", softcap = 1.5"}, "sinks": {"sinks": True},
    "partial": {"rotary": 4}, "interleaved": {"interleaved": True}, "int8": {"int8": True},
    "int8-window": {"int8": True, "extra": ", window = 4"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("batch", "start", "count"), [(2, (0, 0), 7), (1, (5,), 4), (3, (6, 2, 9), 1)],
                         ids=["prompt", "chunk-after-past", "ragged-step"])
def test_attention_over_a_cache(name: str, batch: int, start: tuple[int, ...], count: int) -> None:
    module = block(**VARIANTS[name])  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    int8 = bool(VARIANTS[name].get("int8"))
    # The rows before `start` are what a session would hold; what lies behind is never read.
    cache = [rng.integers(-90, 90, (batch, 2, 12, 16)).astype(np.int8) if int8
             else rng.standard_normal((batch, 2, 12, 16)).astype(np.float32) for _ in range(2)]
    pos = np.array(start)[:, None] + np.arange(count)
    inputs = {"x": rng.standard_normal((batch, count, 64)).astype(np.float32), "pos": pos, "kc": cache[0], "vc": cache[1]}
    expected = run_reference(module, inputs)
    got = run_onnx(module, inputs)
    np.testing.assert_allclose(got[0], expected[0], atol=0.02 if int8 else 2e-5)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        for row in range(batch):
            ends = pos[row, -1] + 1
            np.testing.assert_allclose(mine[row, :, :ends].astype(float), theirs[row, :, :ends], atol=1 if int8 else 2e-5)


def test_everything_is_absorbed_into_the_kernel(tmp_path: Path) -> None:
    found = op_types(block(int8=True), tmp_path)
    assert found.count("GroupQueryAttention") == 1
    assert not set(found) & {"RotaryEmbedding", "Split", "Transpose", "Reshape", "Round", "Clip", "ScatterND", "Softmax"}


def test_standard_operators_alone_give_the_same(tmp_path: Path) -> None:
    module = block(extra=", window = 3", sinks=True)
    model = write(module, tmp_path, opset_only=True).model
    assert {n.domain for n in onnx.load(model, load_external_data=False).graph.node} == {""}
    rng = np.random.default_rng(2)
    kc, vc = rng.standard_normal((2, 1, 2, 9, 16)).astype(np.float32)
    inputs = {"x": rng.standard_normal((1, 3, 64)).astype(np.float32), "pos": np.array([[4, 5, 6]]), "kc": kc, "vc": vc}
    for mine, theirs in zip(run_onnx(module, inputs, opset_only=True), run_reference(module, inputs), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


LINEAR = """
module @head {
  dim B in 1..8
  dim S in 1..64
  const @embed : f32[300, 128] = memory(key="embed")
  const @w : f32[512, 128] = memory(key="w")
  const @bias : f32[512] = memory(key="bias")
  const @out : f32[128, 512] = memory(key="out")
  func @forward(%ids: i64[B, S]) -> (f32[B, S, 300]) {
    %x = embedding(%ids, @embed) : f32[B, S, 128]
    %h = linear(%x, @w, bias=@bias) : f32[B, S, 512]
    %s = silu(%h) : f32[B, S, 512]
    %y = linear(%s, @out) : f32[B, S, 128]
    %z = add(%x, %y) : f32[B, S, 128]
    %logits = linear(%z, @embed) : f32[B, S, 300]
    return %logits
  }
}
"""


def head(options: str) -> Module:
    module = parse_module(LINEAR)
    rng = np.random.default_rng(3)
    for const in module.consts.values():
        const.weight = ArrayWeight((rng.standard_normal(const.type.shape) * 0.1).astype(np.float32))
    run_pipeline(module, parse_pipeline(f"quantize{{{options}}}"))
    return module


@pytest.mark.parametrize("options", ["format=int4 group=32", "format=int4 group=32 symmetric", "format=int4 group=128",
                                     "format=int8 group=32", "format=int8 group=64 symmetric", "format=int2 group=16",
                                     "format=int4 group=32 lm-head=int8", "format=int4 group=32 lm-head=none embedding=false"])
def test_packed_weights(options: str, tmp_path: Path) -> None:
    module = head(options)
    ids = np.random.default_rng(4).integers(0, 300, (2, 5))
    expected = run_reference(module, [ids])[0]
    np.testing.assert_allclose(run_onnx(module, [ids])[0], expected, atol=0.03 * np.abs(expected).max())
    assert op_types(module, tmp_path).count("MatMulNBits") == (2 if "lm-head=none" in options else 3)


@pytest.mark.parametrize("scale", ["token", "tensor"])
def test_quantised_inputs(scale: str, tmp_path: Path) -> None:
    """In the graph for many rows, products of integers; one step for all needs no look at the rows."""
    module = head("format=int8 group=0 symmetric embedding=false")
    ids = np.random.default_rng(5).integers(0, 300, (2, 9))
    run_pipeline(module, parse_pipeline(f"quantize-inputs{{scale={scale}}}"), Context(calibration=[ids]))
    expected = run_reference(module, [ids])[0]
    np.testing.assert_allclose(run_onnx(module, [ids])[0], expected, atol=0.01 * np.abs(expected).max())
    written = write(module, tmp_path, prefill=module)
    assert written.prefill is not None
    kinds = [n.op_type for n in onnx.load(written.prefill, load_external_data=False).graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("ReduceMax")) == (3, 3 if scale == "token" else 0)
    assert not {"Clip", "Round", "Cast"} & set(kinds)
    with prefill_weights(written.prefill_weights, written.weights) as folder:
        found = Graph(written.prefill, weights=folder).run({"ids": ids})[0]
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("options", ["format=int4 group=32", "format=int4 group=32 symmetric", "format=int8 group=64"])
def test_int8_rows_made_at_load(options: str, tmp_path: Path) -> None:
    module = head(options)
    written = write(module, tmp_path, prefill=module)
    assert written.prefill is not None
    with prefill_weights(written.prefill_weights, written.weights) as folder:
        graph = Graph(written.prefill, weights=folder)
    ids = np.random.default_rng(5).integers(0, 300, (2, 9))
    expected = run_reference(module, [ids])[0]
    np.testing.assert_allclose(graph.run({"ids": ids})[0], expected, atol=0.03 * np.abs(expected).max())
    one = open_session(written.model).run(None, {"ids": ids[:, :1]})[0]
    np.testing.assert_allclose(graph.run({"ids": ids[:, :1]})[0], one, atol=0.05 * np.abs(one).max())
