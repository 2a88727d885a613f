"""GPTQ on arrays, compensation in closed form, and the whole of it in graph order."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import IRError, PassError
from ingot.ir.copy import copied, copy_module
from ingot.ir.formats import FORMATS, Format, format_named
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.calibration.moments import Moments, added_to, gather
from ingot.passes.calibration.track import Track
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.quantization import rtn
from ingot.passes.quantization.gptq import feedback, gptq
from ingot.testing import Decoder
from tests.passes.test_rotate import LLAMA

formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)


def correlated(k: int, *, tokens: int = 512, seed: int = 0) -> np.ndarray:
    """Inputs f32[tokens, k] whose channels depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(k, k)) * 0.1 + np.diag(np.exp(rng.normal(size=k)))
    return (rng.normal(size=(tokens, k)) @ mix).astype(np.float32)


def moments(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def weight(n: int = 24, k: int = 80, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def lost(w: np.ndarray, coded: np.ndarray, second: np.ndarray) -> float:
    return float(np.vdot((w - coded) @ second, w - coded))


# --- arrays -----------------------------------------------------------------------------------------------------------


@formats
@pytest.mark.parametrize("symmetric", [True, False])
def test_loses_less_than_the_nearest_codes_under_the_best_steps(fmt: Format, symmetric: bool) -> None:
    w, second = weight(), moments(correlated(80))
    group = fmt.group or 80
    made = gptq(w, fmt, feedback(second, group=group), symmetric=symmetric)
    nearest = rtn.rounded(w, fmt, group=group, symmetric=symmetric, search=True)
    assert lost(w, made.decoded(), second) < 0.8 * lost(w, nearest.decoded(), second)
    assert made.codes.shape == w.shape
    assert made.codes.dtype == fmt.code.numpy
    assert {name: (a.shape, a.dtype) for name, a in made.parts.items()} == {
        name: (a.shape, a.dtype) for name, a in nearest.parts.items()}


@pytest.mark.parametrize("group", [4, 12])
def test_is_the_paper_s_update_by_the_inverse(group: int) -> None:
    """Column by column: the rest takes on -e / [H^-1]_jj [H^-1]_j: after which j leaves the inverse (equations 2 and 3)."""
    w, second = weight(6, 12), moments(correlated(12))
    fmt = format_named("int3")
    how = feedback(second, group=group, damping=0.0)
    scales = rtn.chosen_steps(w, fmt, group=group)
    order = np.concatenate(how.groups)
    inverse = np.linalg.inv(second.astype(np.float64)[np.ix_(order, order)])
    left, values = w.astype(np.float64)[:, order], np.zeros(w.shape)
    for j in range(12):
        each = scales.step[:, order[j] // group], scales.zero[:, order[j] // group]
        values[:, j] = fmt.decode(fmt.encode(left[:, j].astype(np.float32), *each), *each)
        error = (left[:, j] - values[:, j]) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1
    made = gptq(w, fmt, how, scales=scales)
    np.testing.assert_allclose(made.decoded()[:, order], values, atol=1e-5)


def test_independent_inputs_make_it_rounding_to_nearest() -> None:
    w, fmt = weight(), format_named("int4")
    made = gptq(w, fmt, feedback(np.eye(80, dtype=np.float32), group=16))
    np.testing.assert_array_equal(made.codes, rtn.rounded(w, fmt, group=16, search=True).codes)


def test_columns_go_by_importance_within_whole_groups() -> None:
    second = np.diag(np.array([1, 5, 2, 9, 3, 8, 7], np.float32))
    how = feedback(second, group=3)
    assert [g.tolist() for g in how.groups] == [[6], [3, 5, 4], [1, 2, 0]]
    assert not how.pull.any()


def test_errors_reach_the_columns_behind_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    w, fmt, how = weight(), format_named("int3"), feedback(moments(correlated(80)), group=40)
    codes = []
    for block in (4, 7, 128):
        monkeypatch.setattr("ingot.passes.quantization.gptq._BLOCK", block)
        codes.append(gptq(w, fmt, how).codes)
    assert (codes[0] == codes[2]).mean() > 0.99
    assert (codes[1] == codes[2]).mean() > 0.99


def test_inputs_that_are_always_zero() -> None:
    """Are counted, keep the nearest code, and disturb no other."""
    x = correlated(80)
    x[:, [3, 40]] = 0
    w, fmt, how = weight(), format_named("int4"), feedback(moments(x), group=16)
    assert how.dead == 2
    made = gptq(w, fmt, how)
    assert np.isfinite(made.decoded()).all()
    nearest = fmt.encode(w[:, 3], made.scales.step[:, 0], made.scales.zero[:, 0])
    np.testing.assert_array_equal(made.codes[:, 3], nearest)
    assert feedback(np.zeros((8, 8), np.float32), group=4).dead == 8


def test_the_part_that_is_left() -> None:
    """All of it without correlation; none of the squared error of a column that another repeats, but of one of the two."""
    np.testing.assert_allclose(feedback(np.diag(np.arange(1, 9, dtype=np.float32)), group=4).left, 1, rtol=1e-6)
    x = correlated(16)[:, :8]
    left = feedback(moments(np.concatenate([x, x], 1)), group=16, damping=1e-6).left
    alone = feedback(moments(x), group=8, damping=1e-6).left
    assert (np.minimum(left[:8], left[8:]) < 1e-3).all()
    np.testing.assert_allclose(np.maximum(left[:8], left[8:]).prod(), alone.prod(), rtol=0.01)


def test_what_is_not_finite_is_refused() -> None:
    second = moments(correlated(80))
    second[3, 3] = np.inf
    with pytest.raises(IRError, match="second moments of its inputs are not finite"):
        feedback(second, group=16)
    w = weight()
    w[2, 2] = np.nan
    with pytest.raises(IRError, match="NaN or infinite"):
        gptq(w, format_named("int4"), feedback(np.eye(80, dtype=np.float32), group=16))


def test_compensation_is_the_least_squares_weight() -> None:
    """Without a ridge, T x is as near to W x' + r' - r as any linear map of x; without a residual sum, to W x'."""
    rng = np.random.default_rng(0)
    original = correlated(12)
    x = original + 0.3 * rng.normal(size=original.shape).astype(np.float32)
    w, missing = weight(5, 12), rng.normal(size=(512, 5)).astype(np.float32)
    linear = next(op for op in Decoder().module().ops if op.name == "linear")
    lack = ((original - x) @ w.T + missing).T @ x / len(x)
    made = Moments(moments(x), None, {linear: lack})  # type: ignore[dict-item]
    wanted = np.linalg.lstsq(x, original @ w.T + missing, rcond=None)[0].T
    np.testing.assert_allclose(made.target(linear, w, ridge=0.0), wanted, atol=1e-4)  # type: ignore[arg-type]
    alone = Moments(moments(x), (original - x).T @ x / len(x), {})
    wanted = np.linalg.lstsq(x, original @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(alone.target(linear, w, ridge=0.0), wanted, atol=1e-4)  # type: ignore[arg-type]
    near, far = (np.abs(made.target(linear, w, ridge=r) - w).max() for r in (100.0, 0.1))  # type: ignore[arg-type]
    assert near < 0.05 < far


# --- in graph order ---------------------------------------------------------------------------------------------------


CALIBRATION = [np.random.default_rng(s).integers(0, 24, (8, 16)) for s in range(4)]
TEST = np.random.default_rng(99).integers(0, 24, (8, 16))


def decoder(**changes: object) -> Module:
    return Decoder(**LLAMA | {"width": 32, "head_dim": 6, "tied": False, "layers": 3} | changes).module()  # type: ignore[arg-type]


def logits(module: Module) -> np.ndarray:
    return run(module, [TEST, np.broadcast_to(np.arange(16), TEST.shape)])[0]


def quantised(module: Module, options: str) -> tuple[Module, dict[str, object]]:
    after = copy_module(module)
    [receipt] = run_pipeline(after, parse_pipeline(f"quantize{{{options}}}"), Context(calibration=CALIBRATION))
    return after, receipt.details


def test_moments_are_means_over_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingot.passes.calibration.moments._BLOCK", 12)
    module = decoder()
    original, twins = copied(module)
    embed = original.consts["embed"]
    original.set_weight(embed, ArrayWeight(embed.weight.materialize() + np.float32(0.5)))
    linear = next(op for op in module.ops if op.name == "linear")
    tracks = Track(module, CALIBRATION), Track(original, CALIBRATION)
    for track, stop in zip(tracks, (linear, twins[linear.result].op), strict=True):
        assert stop is not None
        track.advance(stop)
    made = gather(linear.x, [linear], *tracks, twins)  # type: ignore[attr-defined]
    x, wanted = (np.concatenate([np.asarray(track.rows(value, batch)) for batch in range(len(track.live))])
                 for track, value in zip(tracks, (linear.x, twins[linear.x]), strict=True))  # type: ignore[attr-defined]
    assert made.drift is not None
    np.testing.assert_allclose(made.second, x.T @ x / len(x), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(made.drift, (wanted - x).T @ x / len(x), rtol=1e-3, atol=1e-5)
    assert np.abs(made.drift).max() > 0.01


def test_what_the_residual_sum_lacks() -> None:
    """(w (x' - x) + r' - r) x^T of a linear whose result is added to r."""
    module = decoder()
    original, twins = copied(module)
    embed = original.consts["embed"]
    original.set_weight(embed, ArrayWeight(embed.weight.materialize() + np.float32(0.5)))
    linear, other = next((op, added_to(op)) for op in module.ops if isinstance(op, Linear) and added_to(op))
    assert other is not None
    tracks = Track(module, CALIBRATION), Track(original, CALIBRATION)
    for track, stop in zip(tracks, (linear, twins[linear.result].op), strict=True):
        assert stop is not None
        track.advance(stop)
    made = gather(linear.x, [linear], *tracks, twins)
    x, r = (np.asarray(tracks[0].rows(value, 0)) for value in (linear.x, other))
    x_wanted, r_wanted = (np.asarray(tracks[1].rows(twins[value], 0)) for value in (linear.x, other))
    w = linear.w.weight.materialize()  # type: ignore[attr-defined]
    np.testing.assert_allclose(made.lack[linear], ((x_wanted - x) @ w.T + r_wanted - r).T @ x / len(x), rtol=1e-3, atol=1e-5)
    assert made.drift is None


@pytest.mark.parametrize("changes", [{}, {"qkv": "fused", "mlp_fused": True, "norm": "layer", "norm_bias": True,
                                          "mlp_bias": True}],
                         ids=["plain", "fused"])
def test_the_model_loses_less(changes: dict[str, object]) -> None:
    module = decoder(**changes)
    wanted = logits(module)
    errors = [float(np.square(logits(quantised(module, f"format=int3 group=16 {o}")[0]) - wanted).mean())
              for o in ("clip=mse", "method=gptq compensate=false", "method=gptq")]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.5 * errors[0]


def test_the_receipt_tells_what_was_lost() -> None:
    module = decoder()
    after, details = quantised(module, "format=int4 group=32 method=gptq")
    assert not any(c.type.dtype.is_float and c.type.rank == 2 and "scale" not in c.name for c in after.consts.values()
                   if c.name != "embed")
    assert sum(isinstance(op, Dequantize) for op in after.ops) == details["weights"] == 3 * 7 + 1
    assert set(details["lost"]) == {"mean", "worst", "weight"}  # type: ignore[call-overload]
    assert 0 < details["lost"]["mean"] <= details["lost"]["worst"] < 0.05  # type: ignore[index]
    assert details["lost"]["weight"] in module.consts  # type: ignore[index]
    assert details["dead_inputs"] == 0


def test_the_same_codes_every_time() -> None:
    one, two = (quantised(decoder(), "format=int4 group=32 method=gptq")[0] for _ in range(2))
    for a, b in zip(one.consts.values(), two.consts.values(), strict=True):
        np.testing.assert_array_equal(a.weight.materialize(), b.weight.materialize())
        assert a.weight.origin == b.weight.origin


def test_tied_weights_and_single_steps_are_rounded_to_nearest() -> None:
    after, details = quantised(decoder(tied=True), "format=int4 group=16 method=gptq")
    nearest, _ = quantised(decoder(tied=True), "format=int4 group=16")
    np.testing.assert_array_equal(*(m.consts["embed.packed"].weight.materialize() for m in (after, nearest)))
    assert details["weights"] == 3 * 7 + 1
    _, details = quantised(decoder(), "format=int8 per-tensor symmetric method=gptq")
    assert "lost" not in details


def test_a_weight_whose_input_overflows_is_named() -> None:
    module = decoder()
    for name in ("l1.mlp.gate", "l1.mlp.up"):
        const = module.consts[name]
        module.set_weight(const, ArrayWeight(const.weight.materialize() * np.float32(1e12)))
    with pytest.raises(PassError, match=r"@l1\.mlp\.down: the second moments of its inputs are not finite"):
        quantised(module, "format=int4 group=32 method=gptq")


@pytest.mark.parametrize(("text", "match"), [("quantize{method=gptq}", "quantize needs calibration text"),
                                             ("insert-kv-cache,quantize{method=gptq}", "calibration cannot feed the inputs")])
def test_refused(text: str, match: str) -> None:
    with pytest.raises(PassError, match=match):
        run_pipeline(decoder(), parse_pipeline(text), Context(calibration=CALIBRATION if "cache" in text else None))
