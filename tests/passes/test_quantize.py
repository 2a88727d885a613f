"""quantize: what the weights become, scales by search, choosing weights by name, weights that cannot be stored."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.formats import FORMATS, Format, dequantized, steps
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text import parse_module
from ingot.ir.types import TensorType, f32
from ingot.ir.weights import ArrayWeight, derived
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pass, run_pipeline
from ingot.passes.quantization import rtn
from ingot.passes.quantization.quantize import Quantize
from ingot.passes.quantization.select_weights import selected

TEXT = """
module @m {
  dim B in 1..4
  const @up : f32[48, 80] = memory(key="up")
  const @down : f32[80, 48] = memory(key="down")
  func @forward(%x: f32[B, 80]) -> (f32[B, 80]) {
    %h = linear(%x, @up) : f32[B, 48]
    %a = silu(%h) : f32[B, 48]
    %y = linear(%a, @down) : f32[B, 80]
    %z = mul(%x, %y) : f32[B, 80]
    return %z
  }
}
"""
formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)


def heavy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights with a few large ones, as trained ones have."""
    return rng.standard_t(3, shape).astype(np.float32)


def module() -> Module:
    made, rng = parse_module(TEXT), np.random.default_rng(0)
    for const in made.consts.values():
        const.weight = ArrayWeight(heavy(rng, *const.type.shape))
    return made


def decoded(op: Dequantize) -> np.ndarray:
    """The weight that a dequantize of stored parts stands for."""
    parts = {name: v.weight.materialize() for name, v in op.operand_fields if v is not None}  # type: ignore[union-attr]
    step = steps(*(parts[name] for name in ("scale", "tensor_scale", "offset") if name in parts))
    return dequantized(FORMATS[op.format], op.group, parts["packed"], step, parts.get("zero"))


@pytest.mark.parametrize("clip", ["none", "mse"])
@formats
def test_the_pass_stores_what_rounding_to_nearest_gives(fmt: Format, clip: str) -> None:
    made, before = module(), module()
    receipt = run_pass(made, Quantize(format=fmt.name, clip=clip), Context())
    ops = {op.packed.hint: op for op in made.ops if isinstance(op, Dequantize)}
    total = 0
    for name, const in before.consts.items():
        op = ops[f"{name}.packed"]
        k = const.type.shape[1]
        wanted = rtn.rounded(const.weight.materialize(), fmt, group=fmt.group or k, search=clip == "mse")
        np.testing.assert_array_equal(decoded(op), wanted.decoded())
        assert op.group == (fmt.group or k)
        total += sum(v.type.dtype.bits * int(np.prod(v.type.shape)) for v in op.operands)
    assert receipt.details == {"weights": 2, "bits": [fmt.bits], "bits_per_weight": round(total / (2 * 48 * 80), 4)}


@formats
@pytest.mark.parametrize("symmetric", [True, False])
def test_searching_steps_leaves_no_larger_squared_error(fmt: Format, symmetric: bool) -> None:
    w = heavy(np.random.default_rng(1), 64, 256)
    group = fmt.group or 256
    plain, searched = (rtn.rounded(w, fmt, group=group, symmetric=symmetric, search=search).decoded() for search in (False, True))
    before, after = (np.square(x - w).reshape(64, -1, group).sum(-1) for x in (plain, searched))
    assert after.sum() <= before.sum() if fmt.name == "int8" else after.sum() < before.sum()  # 8 bits gain nothing by clipping
    if fmt.name != "nf4":  # its steps are coded after the search
        assert (after <= before * (1 + 1e-6)).all()


@formats
def test_rows_are_worked_on_a_few_at_a_time(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    w = heavy(np.random.default_rng(2), 37, 70)
    whole = {search: rtn.rounded(w, fmt, group=fmt.group or 70, search=search).parts for search in (False, True)}
    monkeypatch.setattr(rtn, "_AT_ONCE", 300)
    for search, parts in whole.items():
        for name, array in rtn.rounded(w, fmt, group=fmt.group or 70, search=search).parts.items():
            assert array.tobytes() == parts[name].tobytes()


@pytest.mark.parametrize("name", ["int8", "int4", "fp4", "fp8-e4m3"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_step_for_the_whole_weight(name: str, symmetric: bool) -> None:
    w = heavy(np.random.default_rng(3), 20, 30)
    made = rtn.rounded(w, FORMATS[name], group=30, symmetric=symmetric, per_tensor=True)
    assert made.scales.step.shape == (1, 1)
    peak = np.abs(w).max()
    assert np.abs(made.decoded() - w).max() <= FORMATS[name].worst * peak * (1 if symmetric or "fp" in name else 2)
    assert np.abs(made.decoded()).max() == pytest.approx(peak, rel=1e-6 if symmetric else 0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    made = module()
    weight = made.consts["down"].weight.materialize().copy()
    weight[7, 11] = bad
    made.consts["down"].weight = ArrayWeight(weight)
    run_pipeline(made, parse_pipeline("quantize"))
    with pytest.raises(PassError, match="NaN or infinite") as caught, np.errstate(all="ignore"):
        made.consts["down.packed"].weight.materialize()
    assert caught.value.where == "@down"
    made.consts["up.packed"].weight.materialize()


def test_patterns_see_what_a_weight_was_made_from() -> None:
    made = parse_module("""
module @m {
  const @layers.0.qkv : f32[4, 4] = safetensors(file="m", key="h.0.c_attn.weight")
  const @head : f32[4, 4] = memory(key="head")
  func @f(%x: f32[4]) -> (f32[4]) {
    %y = linear(%x, @layers.0.qkv) : f32[4]
    return %y
  }
}
""")
    qkv, head = made.consts["layers.0.qkv"], made.consts["head"]
    both = derived("fuse", lambda a, b: a, qkv.weight, head.weight, type=TensorType(f32, (4, 4)), key="joined")
    joined = made.add_const("joined", both)
    consts = [qkv, head, joined]
    assert selected(consts) == {qkv, head, joined}
    assert selected(consts, only=["h.*.c_attn.*"]) == {qkv, joined}
    assert selected(consts, only=["*"], skip=["head"]) == {qkv}
    assert selected(consts, skip=["layers.?.qkv"]) == {head, joined}
    with pytest.raises(PassError, match=r"no weight is named \*gate\*"):
        selected(consts, only=["head"], skip=["*gate*"])


@pytest.mark.parametrize("text", ["quantize", "quantize{format=nvfp4 symmetric=true}", "quantize{format=int8 group=0 clip=mse}",
                                  "quantize{only=a*+b skip=c}", "quantize{format=fp8-e5m2 per-tensor=true lm-head=none}"])
def test_pipeline_text_prints_back(text: str) -> None:
    assert str(parse_pipeline(text)[0]) == text
