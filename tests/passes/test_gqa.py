"""gqa: which heads go together, what merging keeps, what is refused, and that the result decodes with a smaller cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.compiler import compile as ingot_compile
from ingot.errors import NothingMatched, PassError
from ingot.ir.copy import copy_module
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention
from ingot.ir.text import parse_module
from ingot.ir.value import Const
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.contracts.contract import Check
from ingot.passes.grouping.partition import divided, neighbours
from ingot.passes.grouping.shared import share
from ingot.passes.pipeline import Receipt, parse_pipeline, run_pipeline
from ingot.runtime.session import Session
from tests.frontend.examples import imported
from tests.frontend.models import VOCAB, saved, tiny

TRACE = "clean,recognize,clean,fuse"
HEADS, SIZE, WIDTH = 4, 8, 40
GROUPS = ((0, 2), (1, 3))
"""Of the planted models: the heads of a group are one head, turned."""


def text(count: int = 4, tokens: int = 24, vocabulary: int = VOCAB) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, vocabulary, (1, tokens)) for _ in range(count)]


def grouped(name: str, pipeline: str, *, trace: str = TRACE, check: bool = False) -> tuple[Module, Receipt]:
    module = copy_module(imported(name)[0])
    run_pipeline(module, parse_pipeline(trace))
    receipts = run_pipeline(module, parse_pipeline(pipeline), Context(calibration=text()), check=Check() if check else None)
    verify(module)
    return module, receipts[-1]


def logits(module: Module, *, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, VOCAB, (2, 12))
    return run(module, [ids, np.tile(np.arange(12), (2, 1))])[0]


def key_heads(module: Module) -> list[int]:
    return [op.heads[1] for op in module.main.ops if isinstance(op, Attention)]


def planted(*, rope: str = "half", norm: bool = False, bias: bool = False, fused: bool = False) -> Module:
    """An attention whose heads 2 and 3 are 0 and 1 after maps that attention is invariant to, in f64; rope: half, pairs, part,
    none."""
    rng = np.random.default_rng(3)
    turned = {"half": SIZE // 2, "pairs": SIZE // 2, "part": 2, "none": 0}[rope]
    shared_k, shared_v = rng.normal(size=(2, 2, SIZE, WIDTH + 1))
    shared_k[..., -1] *= bias
    shared_v[..., -1] *= bias
    k, v = np.concatenate([shared_k, shared_k]), np.concatenate([shared_v, shared_v])
    for head in (2, 3):
        v[head] = rng.normal(size=(SIZE, SIZE)) @ v[head]
        a, b = np.arange(turned), np.arange(turned) + turned
        if rope == "pairs":
            a, b = np.arange(0, SIZE, 2), np.arange(1, SIZE, 2)
        if norm:
            k[head] *= 3
            flips = rng.choice([-1.0, 1.0], len(a))
            k[head][a] *= flips[:, None]
            k[head][b] *= flips[:, None]
            continue
        factor = rng.normal(size=len(a)) + 1j * rng.normal(size=len(a))
        pairs = factor[:, None] * (k[head][a] + 1j * k[head][b])
        k[head][a], k[head][b] = pairs.real, pairs.imag
        rest = np.arange(2 * turned, SIZE)
        k[head][rest] = rng.normal(size=(len(rest),) * 2) @ k[head][rest]
    q = rng.normal(size=(2 * HEADS * SIZE, WIDTH + 1)) * 0.3
    q[:, -1] *= bias
    out = rng.normal(size=(WIDTH, 2 * HEADS * SIZE))
    made = {"q": q, "k": k.reshape(-1, WIDTH + 1), "v": v.reshape(-1, WIDTH + 1)}
    if fused:
        made = {"qkv": np.concatenate(list(made.values()))}
    arrays = {"embed": rng.normal(size=(VOCAB, WIDTH)), "out": out, "qnorm": 1 + rng.random(SIZE), "knorm": 1 + rng.random(SIZE),
              "freq": 0.7 ** np.arange(max(turned, 1))}
    for name, w in made.items():
        arrays |= {name: w[:, :-1], f"{name}.bias": w[:, -1]}
    lines = ["module @planted {", "dim B in 1..8", "dim S in 1..64"]
    lines += [f"const @{name} : f64[{', '.join(map(str, w.shape))}] = memory()" for name, w in arrays.items()]
    lines += [f"func @forward(%ids: i64[B, S], %pos: i64[B, S]) -> (f64[B, S, {WIDTH}]) {{",
              f"%x = embedding(%ids, @embed) : f64[B, S, {WIDTH}]"]
    for name, w in made.items():
        with_bias = f", bias=@{name}.bias" if bias else ""
        lines.append(f"%{name} = linear(%x, @{name}{with_bias}) : f64[B, S, {len(w)}]")
    counts = {"q": 2 * HEADS, "k": HEADS, "v": HEADS}
    if fused:
        types = ", ".join(f"f64[B, S, {n * SIZE}]" for n in counts.values())
        lines.append(f"%q, %k, %v = split(%qkv) {{sizes = {[n * SIZE for n in counts.values()]}}} : {types}")
    for name, n in counts.items():
        lines += [f"%{name}1 = reshape(%{name}) {{shape = [B, S, {n}, {SIZE}]}} : f64[B, S, {n}, {SIZE}]"]
        at = f"%{name}1"
        if norm and name != "v":
            lines.append(f"%{name}2 = rms_norm({at}, w=@{name}norm) : f64[B, S, {n}, {SIZE}]")
            at = f"%{name}2"
        lines.append(f"%{name}3 = transpose({at}) {{perm = [0, 2, 1, 3]}} : f64[B, {n}, S, {SIZE}]")
        if turned and name != "v":
            style = " {interleaved = true}" if rope == "pairs" else ""
            lines.append(f"%{name}4 = rope(%{name}3, %pos, @freq){style} : f64[B, {n}, S, {SIZE}]")
    qk = "4" if turned else "3"
    lines += [f"%y = attention(%q{qk}, %k{qk}, %v3) {{scale = 0.1, causal = true, window = 5, softcap = 20.0}} : "
              f"f64[B, {2 * HEADS}, S, {SIZE}]",
              f"%y1 = transpose(%y) {{perm = [0, 2, 1, 3]}} : f64[B, S, {2 * HEADS}, {SIZE}]",
              f"%y2 = reshape(%y1) {{shape = [B, S, {2 * HEADS * SIZE}]}} : f64[B, S, {2 * HEADS * SIZE}]",
              f"%y3 = linear(%y2, @out) : f64[B, S, {WIDTH}]", f"%z = add(%x, %y3) : f64[B, S, {WIDTH}]", "return %z", "}", "}"]
    module = parse_module("\n".join(lines))
    for name, w in arrays.items():
        if name in module.consts:
            module.consts[name].weight = ArrayWeight(np.ascontiguousarray(w))
    module.main.drop_dead()
    return module


@pytest.mark.parametrize("repair", ["none", "all"])
@pytest.mark.parametrize("options", [
    {}, {"rope": "pairs"}, {"rope": "part"}, {"rope": "none"}, {"rope": "none", "bias": True}, {"norm": True}, {"bias": True},
    {"fused": True, "bias": True}, {"norm": True, "fused": True}], ids=str)
def test_planted_redundancy_is_found_and_costs_nothing(options: dict[str, Any], repair: str) -> None:
    before = planted(**options)
    after = copy_module(before)
    [receipt] = run_pipeline(after, parse_pipeline(f"gqa{{kv-heads=2 repair={repair} steps=2}}"),
                             Context(calibration=text(12)))
    entry = receipt.details["sites"][0]
    assert entry["groups"] == [list(group) for group in GROUPS]
    assert entry["keys_lost"] < 1e-9
    assert entry["values_lost"] < 1e-9
    assert key_heads(after) == [2]
    wanted = logits(before)
    np.testing.assert_allclose(logits(after), wanted, atol=1e-5 * np.abs(wanted).max())


def test_mean_is_the_mean_of_neighbours() -> None:
    before = copy_module(imported("llama")[0])
    run_pipeline(before, parse_pipeline("clean,recognize,clean"))
    after, _ = grouped("llama", "gqa{kv-heads=1 method=mean}", trace="clean,recognize,clean")
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"):
        whole, left = (m.consts[name].weight.materialize() for m in (before, after))
        np.testing.assert_allclose(left, (whole[:8] + whole[8:]) / 2, rtol=1e-6)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        whole, left = (m.consts[name].weight.materialize() for m in (before, after))
        np.testing.assert_array_equal(left, whole)


@pytest.mark.parametrize(("name", "trace"), [
    ("llama", TRACE), ("llama", "clean,recognize,clean"), ("qwen2", TRACE), ("qwen3", TRACE), ("gemma2", TRACE), ("phi3", TRACE),
    ("gpt2", TRACE), ("gpt_neox", TRACE), ("smollm3", TRACE), ("stablelm", TRACE)])
def test_architectures(name: str, trace: str) -> None:
    heads = 2 if name in ("gpt2", "gpt_neox") else 1
    whole = copy_module(imported(name)[0])
    run_pipeline(whole, parse_pipeline(trace))
    wanted = logits(whole)
    far = {}
    for pipeline in (f"gqa{{kv-heads={heads} method=mean}}", f"gqa{{kv-heads={heads} steps=8}}"):
        module, receipt = grouped(name, pipeline, trace=trace, check="mean" not in pipeline)
        assert set(key_heads(module)) == {heads}
        assert receipt.parameters_after < receipt.parameters_before
        far[pipeline] = float(np.square(logits(module) - wanted).mean())
    mean, aligned = far.values()
    assert aligned < mean


def test_fitting_more_is_nearer() -> None:
    """Each attention comes nearer to the original's, given what those before it left, when fitted; none comes out farther."""
    found = {how: grouped("llama", f"gqa{{kv-heads=1 repair=attention steps={how}}}")[1].details["sites"] for how in (0, 4, 32)}
    first = [entries[0]["error"] for entries in found.values()]
    assert first == sorted(first, reverse=True)
    assert first[-1] < 0.8 * first[0]
    assert all(entry["error"] <= entry["merged"] for entries in found.values() for entry in entries)


def test_only_and_skip_choose_by_name() -> None:
    assert key_heads(grouped("llama", "gqa{kv-heads=1 steps=1 skip=model.layers.0.*}")[0]) == [2, 1]
    assert key_heads(grouped("llama", "gqa{kv-heads=1 steps=1 only=*.0.self_attn.qkv.weight}")[0]) == [1, 2]


@pytest.mark.parametrize(("name", "pipeline", "message"), [
    ("llama", "gqa{kv-heads=0}", "at least one"), ("gpt2", "gqa{kv-heads=3}", "4 key heads cannot become 3"),
    ("llama", "gqa{kv-heads=1 skip=nothing}", "no weight is named nothing"),
    ("olmo2", "gqa{kv-heads=1}", "rms_norm takes several heads together, at %mul"),
    ("llama", "quantize{format=int8 group=0},gqa{kv-heads=1}", "cannot follow quantize"),
    ("llama", "take-logits,insert-kv-cache,gqa{kv-heads=1}", "cannot follow insert-kv-cache")])
def test_mistakes_are_refused(name: str, pipeline: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        grouped(name, pipeline)
    assert message in str(caught.value)


def test_what_cannot_be_merged_can_be_skipped() -> None:
    with pytest.raises(NothingMatched):
        grouped("olmo2", "gqa{kv-heads=1 skip=*}")


def test_a_result_that_is_read_elsewhere_is_averaged_only() -> None:
    module = planted()
    attention = next(op for op in module.main.ops if isinstance(op, Attention))
    module.main.set_returns([*module.main.returns, attention.result])
    with pytest.raises(PassError) as caught:
        run_pipeline(copy_module(module), parse_pipeline("gqa{kv-heads=2}"), Context(calibration=text()))
    assert "%y" in str(caught.value)
    assert "method=mean" in str(caught.value)
    run_pipeline(module, parse_pipeline("gqa{kv-heads=2 method=mean}"))
    assert key_heads(module) == [2]


def test_align_needs_text_and_mean_does_not() -> None:
    with pytest.raises(PassError, match="calibration"):
        run_pipeline(planted(), parse_pipeline("gqa{kv-heads=2}"))


def test_heads_with_sinks_take_them_along() -> None:
    before = planted()
    attention = next(op for op in before.main.ops if isinstance(op, Attention))
    sinks = before.add_const("sinks", ArrayWeight(np.random.default_rng(0).normal(size=2 * HEADS)))
    before.main.set_operand(attention, "sinks", sinks)
    after = copy_module(before)
    run_pipeline(after, parse_pipeline("gqa{kv-heads=2 repair=none}"), Context(calibration=text(12)))
    wanted = logits(before)
    np.testing.assert_allclose(logits(after), wanted, atol=1e-5 * np.abs(wanted).max())


def test_heads_that_a_bias_tells_apart_stay_in_their_places() -> None:
    module = planted()
    attention = next(op for op in module.main.ops if isinstance(op, Attention))
    bias: Const = module.add_const("bias", ArrayWeight(np.random.default_rng(0).normal(size=(1, 2 * HEADS, 1, 1))))
    module.main.set_operand(attention, "bias", bias)
    [receipt] = run_pipeline(module, parse_pipeline("gqa{kv-heads=2 repair=none}"), Context(calibration=text()))
    assert receipt.details["sites"][0]["groups"] == [[0, 1], [2, 3]]


def test_it_decodes_with_a_smaller_cache(tmp_path: Path) -> None:
    calib = tmp_path / "calib.npz"
    np.savez(calib, text=np.concatenate(text()))
    checkpoint = saved(tiny("llama")[1], tmp_path / "llama")
    after = "clean,take-logits,insert-kv-cache,clean"
    ingot_compile(checkpoint, tmp_path / "whole", passes=f"{TRACE},{after}", evaluation=False)
    ingot_compile(checkpoint, tmp_path / "out", passes=f"{TRACE},gqa{{kv-heads=1 steps=4}},{after}", calib=calib,
                  evaluation=False)
    whole, session = (Session.open(tmp_path / name) for name in ("whole", "out"))
    ids = text(1, 12)[0][0]
    full = session.logits(ids[None])[0]
    steps = [session.prefill([ids[:5]])[0].copy(), *(session.step(np.array([i]))[0].copy() for i in ids[5:])]
    np.testing.assert_allclose(np.stack(steps), full[4:], rtol=1e-4, atol=1e-4)
    whole.prefill([ids[:5]])
    assert 2 * session.cache_bytes == whole.cache_bytes


# --- the parts ----------------------------------------------------------------------------------------------------------


def test_division_finds_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    for heads, count in ((6, 2), (8, 4), (32, 8)):
        group = rng.permutation(np.repeat(np.arange(count), heads // count))
        noise = rng.random((heads, heads)) * 0.1
        costs = (group[:, None] != group[None]) + noise + noise.T
        np.fill_diagonal(costs, 0)
        found = divided(costs, count)
        assert sorted(h for g in found for h in g) == list(range(heads))
        assert all(len({group[h] for h in g}) == 1 for g in found)

    assert neighbours(6, 3) == ((0, 1), (2, 3), (4, 5))


def test_shared_features_are_the_best_of_their_rank() -> None:
    """What is lost is the tail of the singular values of all heads together, and reading them back gives exactly that error."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(1, 3, 4, 20)) + 1j * rng.normal(size=(1, 3, 4, 20))
    root = rng.normal(size=(20, 20))
    moments = root @ root.T
    found = share(weights, np.broadcast_to(np.eye(4), (1, 3, 4, 4)), moments)
    values = np.linalg.svd(weights.reshape(12, 20) @ root, compute_uv=False)
    assert found.lost[0] == pytest.approx(np.square(values[4:]).sum())
    rest = (weights - found.maps @ found.rows[:, None]).reshape(12, 20) @ root
    assert np.square(np.abs(rest)).sum() == pytest.approx(found.lost[0])
