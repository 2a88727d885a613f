"""Products of codes with codes: what is coded in front of a linear is multiplied as it is, where the weight's codes are alike."""

from __future__ import annotations

from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest

from ingot.backends.triton import matmul, split
from ingot.ir.formats import format_named
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import DType, f8e4m3, i8
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from tests.backends.triton.interpreted.check import agree, changed

TEXT = """
module @coded {{
  dim M in 1..400
  const @w : {weight}[24, {k}] = memory()
  const @s : f32[24, 1] = memory()
  func @forward(%c: {codes}[M, {k}], %step: f32[M, 1], %r: f32[M, {n}]) -> (f32[M, {n}]) {{
    %f = cast(%c) {{dtype = f32}} : f32[M, {k}]
    %x = mul(%f, %step) : f32[M, {k}]
    %d = dequantize(@w, @s) {{format = "{format}", group = {k}}} : f32[24, {k}]
    %y = linear(%x, %d) : f32[M, 24]
{rest}    return %o
  }}
}}
"""
PLAIN = "    %o = add(%y, %r) : f32[M, 24]\n"
GATED = """    %g, %u = split(%y) {{sizes = [12, 12]}} : f32[M, 12], f32[M, 12]
    %a = silu(%g) : f32[M, 12]
    %b = mul(%a, %u) : f32[M, 12]
    %o = add(%b, %r) : f32[M, 12]
"""
KINDS = {"int8": (i8, "u8"), "fp8-e4m3": (f8e4m3, "f8e4m3")}


def coded(name: str, k: int, *, rest: str = PLAIN) -> Module:
    kind, weight = KINDS[name]
    module = parse_module(TEXT.format(weight=weight, k=k, n=24 if rest is PLAIN else 12, codes=kind.name, format=name,
                                      rest=rest.replace("{{", "{").replace("}}", "}")))
    rng = np.random.default_rng(k)
    fmt = format_named(name)
    w = rng.normal(size=(24, k)).astype(np.float32)
    step, zero = fmt.parameters(w, symmetric=True, tensor_scale=None)
    module.consts["w"].weight = ArrayWeight(fmt.encode(w, step[:, None], zero), dtype=module.consts["w"].type.dtype)
    module.consts["s"].weight = ArrayWeight(step[:, None].copy())
    return module


def inputs(module: Module, name: str, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows)
    codes, _, residual = (p.type.dims for p in module.main.params)
    k, n = int(codes[1]), int(residual[1])  # type: ignore[arg-type]
    made = rng.integers(-127, 128, size=(rows, k)).astype(np.int8) if name == "int8" else (
        (100 * rng.normal(size=(rows, k))).astype(ml_dtypes.float8_e4m3fn))
    return [made, rng.uniform(0.001, 0.01, size=(rows, 1)).astype(np.float32), rng.normal(size=(rows, n)).astype(np.float32)]


@pytest.mark.parametrize("rest", [PLAIN, GATED])
@pytest.mark.parametrize("rows", [1, 3, 40, 70])
@pytest.mark.parametrize("name", KINDS)
def test_codes_are_multiplied_as_they_are(name: str, rows: int, rest: str) -> None:
    """Exactly, but for the sum in f32 of floats. 70 rows take the form that lays the codes out first."""
    module = coded(name, 104, rest=rest)
    with patch.object(matmul, "MANY_ROWS", 64):
        compiled = agree(module, inputs(module, name, rows), limit=2e-6)
    assert len(compiled.steps) == 1
    assert "_codes_few(" in compiled.source
    assert ("tl.zeros([BLOCK_M, BLOCK_N], tl.int32)" in compiled.source) == (name == "int8")


@pytest.mark.parametrize("name", KINDS)
def test_programs_share_the_depth(name: str) -> None:
    with patch.multiple(split, PROGRAMS=10**6, LEAST=1):
        module = coded(name, 520, rest=GATED)
        compiled = agree(module, inputs(module, name, 5), limit=2e-6)
    assert "_codes_few_split(" in compiled.source


@pytest.mark.parametrize("mistake", [(" * step_at)", ")"), ("device.code(words, code", "device.code(words, 0")])
def test_codes_read_wrongly_are_noticed(mistake: tuple[str, str]) -> None:
    with changed(*mistake), pytest.raises(AssertionError, match="is off by"):
        test_codes_are_multiplied_as_they_are("int8", 3, PLAIN)


def test_codes_of_two_kinds_are_decoded() -> None:
    """Small floats in front of integers."""
    module = coded("int8", 104)
    x = inputs(module, "fp8-e4m3", 3)
    twin = parse_module(print_module(module).replace("%c: i8", "%c: f8e4m3"))
    for name, const in twin.consts.items():
        const.weight = module.consts[name].weight
    assert "_codes" not in agree(twin, x, limit=2e-6).source


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("quantize", "inputs", "kind"), [
    ("format=int8 group=0 symmetric", "format=int8", i8), ("format=fp8-e4m3 group=0", "format=fp8-e4m3", f8e4m3),
    ("format=fp8-e4m3 group=0", "format=fp8-e4m3 scale=tensor", f8e4m3)])
def test_inputs_coded_by_the_pass(quantize: str, inputs: str, kind: DType, dtype: str) -> None:
    """8-bit weights and inputs as `quantize-inputs` writes them: the codes of tokens lie in memory, in 8 bits."""
    module = parse_module("""
module @pass {
  dim M in 1..400
  const @w : TYPE[48, 64] = memory()
  func @forward(%ids: i64[M, 64]) -> (TYPE[M, 48]) {
    %x = cast(%ids) {dtype = TYPE} : TYPE[M, 64]
    %n = rms_norm(%x) : TYPE[M, 64]
    %y = linear(%n, @w) : TYPE[M, 48]
    return %y
  }
}
""".replace("TYPE", dtype))
    rng = np.random.default_rng(0)
    module.consts["w"].weight = ArrayWeight(rng.normal(size=(48, 64)).astype(module.consts["w"].type.dtype.numpy))
    texts = [rng.integers(-100, 100, size=(5, 64)) for _ in range(2)]
    passes = parse_pipeline(f"quantize{{{quantize}}},quantize-inputs{{{inputs}}}")
    run_pipeline(module, passes, Context(calibration=texts))
    ids = texts[0].copy()
    ids[0, 5] = 5000  # beyond what the calibration showed
    # Rounding to codes is where f32 and the reference in f64 may part by a whole step.
    compiled = agree(module, [ids], limit=1e-2 if dtype == "f32" else 3e-2)
    assert "_codes_few(" in compiled.source
    written = [v.type.dtype for step in compiled.steps for v in step.group.outputs]
    assert kind in written
    assert len(compiled.steps) == 2
    steps = {"f32"} if dtype == "f32" or kind != i8 else {"bf16"}
    assert {d.name for d in written} <= {kind.name, dtype, *steps}
