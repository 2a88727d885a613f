"""Quantised weights in onnxruntime: as small on disk as the format, made for the kernels at load, and nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from ingot.backends.onnx.lowering import lower
from ingot.backends.onnx.made_at_load import Int8Rows, LookedUp
from ingot.backends.onnx.session import run as run_onnx
from ingot.backends.onnx.writer import Written, write
from ingot.backends.torch.executor import Executor
from ingot.ir.formats import FORMATS, format_named
from ingot.ir.interpret import run as run_reference
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.ir.weights import ArrayWeight, DerivedWeight
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.runtime.ort import Graph
from ingot.runtime.prefill import prefill_weights

LINEAR = """
module @linear {
  dim B in 1..64
  const @w : f32[N, K] = memory(key="w")
  func @forward(%x: f32[B, K]) -> (f32[B, N]) {
    %y = linear(%x, @w) : f32[B, N]
    return %y
  }
}
"""
TIED = """
module @tied {
  dim S in 1..64
  const @w : f32[N, K] = memory(key="w")
  func @forward(%ids: i64[S]) -> (f32[S, N]) {
    %x = embedding(%ids, @w) : f32[S, K]
    %y = linear(%x, @w) : f32[S, N]
    return %y
  }
}
"""
OPTIONS = [*(f"format={name}" for name in FORMATS), *(f"format=int{bits} symmetric" for bits in (8, 4, 3, 2)),
           *(f"format={name} group=0" for name in ("int8", "int4", "int3", "int2", "fp4")), "format=int8 group=0 symmetric",
           "format=int3 group=128", "format=nf4 group=16", "format=fp8-e4m3 group=128",
           *(f"format={name} per-tensor" for name in ("int8", "fp4", "fp8-e4m3", "fp8-e5m2"))]


def quantized(text: str, options: str, n: int, k: int) -> Module:
    """A module with one random weight [n, k], quantised, its parts held as arrays."""
    module = parse_module(text.replace("N", str(n)).replace("K", str(k)))
    w = np.random.default_rng(n + k).standard_normal((n, k)) * np.exp(np.random.default_rng(1).standard_normal((n, 1)))
    module.consts["w"].weight = ArrayWeight(w.astype(np.float32))
    run_pipeline(module, parse_pipeline(f"quantize{{{options}}}"))
    for const in module.consts.values():
        const.weight = ArrayWeight(const.weight.materialize(), dtype=const.type.dtype)
    return module


def load(written: Written) -> Graph:
    plan = json.loads(json.dumps(written.graph_weights))
    with prefill_weights(plan, written.weights) as folder:
        return Graph(written.model, threads=1, weights=folder)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("text", "n", "k"), [(LINEAR, 300, 128), (LINEAR, 17, 200), (TIED, 130, 256)],
                         ids=["linear", "odd", "tied"])
def test_backends_agree(text: str, n: int, k: int, options: str, tmp_path: Path) -> None:
    module, rng = quantized(text, options, n, k), np.random.default_rng(3)
    x = rng.integers(0, n, 5) if text is TIED else rng.standard_normal((5, k)).astype(np.float32)
    wanted = run_reference(module, [x])[0]
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(Executor(module).run([x])[0].numpy(), wanted, atol=1e-5 * scale)
    compact = write(module, tmp_path, compact=True)
    got = load(compact).run({module.main.params[0].hint or "": x})[0]
    # Kernels on integers round activations to int8.
    tolerance = 1e-5 if compact.decoded else 0.02
    np.testing.assert_allclose(got, wanted, atol=tolerance * scale)
    np.testing.assert_array_equal(run_onnx(module, [x])[0], got)
    np.testing.assert_allclose(run_onnx(module, [x], opset_only=True)[0], wanted, atol=0.02 * scale)


@pytest.mark.parametrize("options", [*(f"format={name}" for name in FORMATS), "format=int4 symmetric", "format=int3 group=128",
                                     "format=int8 group=0 symmetric", "format=int2 group=0"])
def test_the_artifact_is_as_small_as_the_format(options: str, tmp_path: Path) -> None:
    n, k = 2048, 1536
    module = quantized(LINEAR, options, n, k)
    written = write(module, tmp_path, compact=True)
    [dq] = [op for op in module.ops if op.name == "dequantize"]
    bits = format_named(dq.attrs["format"]).weight_bits(dq.attrs["group"], symmetric="symmetric" in options)
    size = written.weights.stat().st_size + written.model.stat().st_size
    assert size == pytest.approx(n * k * bits / 8, rel=0.01)


@pytest.mark.parametrize("options", OPTIONS)
def test_kernels_are_used_where_there_are_some(options: str, tmp_path: Path) -> None:
    written = write(quantized(LINEAR, options, 300, 128), tmp_path, compact=True)
    found = [node.op_type for node in onnx.load(written.model, load_external_data=False).graph.node]
    if "nf4" in options or "fp8" in options:
        assert found == ["MatMul"]
        assert list(written.decoded.values()) == [4 * 300 * 128]
    else:
        assert found[-1] == "MatMulNBits"
        assert set(found) <= {"MatMulNBits", "Gather", "Cast", "Mul", "Expand"}
        assert not written.decoded


@pytest.mark.parametrize("options", [o for o in OPTIONS if not o.startswith(("format=int8", "format=int4", "format=int2"))])
def test_what_the_runtime_makes_is_what_the_module_says(options: str, tmp_path: Path) -> None:
    """Byte for byte, through the plan in the manifest."""
    module = quantized(LINEAR, options, 300, 136)
    written = write(module, tmp_path, compact=True)
    with prefill_weights(json.loads(json.dumps(written.graph_weights)), written.weights) as folder:
        assert folder is not None
        made = (folder / "prefill.bin").read_bytes()
    [(name, weight)] = [(name, w) for name, w in lower(module).weights.items() if isinstance(w, LookedUp)]
    tensor = next(i for i in onnx.load(written.model, load_external_data=False).graph.initializer if i.name == name)
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    assert made[offset:offset + weight.nbytes] == weight.materialize().tobytes()


@pytest.mark.parametrize("name", ["fp4", "mxfp4", "nvfp4"])
def test_e2m1_as_integers_changes_no_weight(name: str) -> None:
    module = quantized(LINEAR, f"format={name}", 40, 96)
    codes = next(w for w in lower(module).weights.values() if isinstance(w, LookedUp)).materialize().reshape(40, 96)
    packed = next(c for c in module.consts.values() if c.name.endswith("packed")).weight.materialize()
    np.testing.assert_array_equal((codes.astype(np.float32) - 128) / 2, packed.astype(np.float32))


@pytest.mark.parametrize("options", [
    "format=int8 group=0 symmetric", "format=int4 group=0 symmetric", "format=int8", "format=int3", "format=int3 symmetric",
    "format=int2 group=16", "format=nvfp4", "format=mxfp4", "format=fp4", "format=int4 group=0",
    "format=int4 per-tensor symmetric"])
def test_int8_rows_for_prompts(options: str, tmp_path: Path) -> None:
    """Rounded to nearest, but for whole rows of integers, which are int8 already."""
    module = quantized(LINEAR, options, 600, 128)
    written = write(module, tmp_path, prefill=module)
    assert written.prefill is not None
    with prefill_weights(json.loads(json.dumps(written.prefill_weights)), written.weights) as folder:
        assert folder is not None
        made = (folder / "prefill.bin").read_bytes()
        graph = Graph(written.prefill, threads=1, weights=folder)
    source = next(w.source for w in lower(module, int8_rows=True).weights.values() if isinstance(w, Int8Rows))
    floats = source.materialize()
    [entry] = [e for e in written.prefill_weights if "scale_offset" in e]
    codes = np.frombuffer(made, np.int8, 128 * 600, entry["offset"]).reshape(128, 600)
    scale = np.frombuffer(made, np.float32, 600, entry["scale_offset"])
    whole = "symmetric" in options and ("group=0" in options or "per-tensor" in options)
    limit = 1e-6 if whole else 0.501
    assert (np.abs(codes * scale - floats) <= limit * np.abs(scale)).all()
    x = np.random.default_rng(5).standard_normal((9, 128)).astype(np.float32)
    wanted = run_reference(module, [x])[0]
    np.testing.assert_allclose(graph.run({"x": x})[0], wanted, atol=0.03 * np.abs(wanted).max())


def test_weights_decoded_to_floats_have_no_second_graph(tmp_path: Path) -> None:
    module = quantized(LINEAR, "format=nf4", 300, 128)
    assert write(module, tmp_path, prefill=module, compact=True).prefill is None


@pytest.mark.parametrize("options", OPTIONS)
def test_standard_operators_alone(options: str, tmp_path: Path) -> None:
    written = write(quantized(TIED, options, 130, 64), tmp_path, opset_only=True, compact=True)
    assert {node.domain for node in onnx.load(written.model, load_external_data=False).graph.node} == {""}
    assert not written.graph_weights


def test_computed_scales_stay_in_the_graph() -> None:
    """A dequantize whose scales the graph computes is no stored weight, whatever its format."""
    module = parse_module("""
module @m {
  const @c : u4[6, 32] = memory(key="c")
  func @forward(%x: f32[2, 32], %s: f32[6, 2]) -> (f32[2, 6]) {
    %w = dequantize(@c, %s) {format = "nf4", group = 16} : f32[6, 32]
    %y = linear(%x, %w) : f32[2, 6]
    return %y
  }
}
""")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (6, 32)).astype(module.consts["c"].type.dtype.numpy)
    module.consts["c"].weight = DerivedWeight(module.consts["c"].type, lambda: codes, (), "memory")
    inputs = [rng.standard_normal((2, 32)).astype(np.float32), rng.uniform(0.5, 1, (6, 2)).astype(np.float32)]
    np.testing.assert_allclose(run_onnx(module, inputs)[0], run_reference(module, inputs)[0], rtol=1e-5, atol=1e-5)
