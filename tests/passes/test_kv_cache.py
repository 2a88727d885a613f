"""insert-kv-cache and take-logits on a small decoder: decoding equals the full forward, and what is no decoder is refused."""

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.passes.pipeline import parse_pipeline, run_pipeline

DECODER = """
module @tiny {{
  dim B in 1..8
  dim S in 1..64
  const @embed : f32[32, 16] = dense()
  const @table : f32[64, 16] = dense()
  const @wq : f32[16, 16] = dense()
  const @wk : f32[8, 16] = dense()
  const @freq : f32[2] = dense([1.0, 0.1])
  func @forward(%ids: i64[B, S]{pos_param}) -> (f32[B, S, 32]) {{
    %x = embedding(%ids, @embed) : f32[B, S, 16]
    {positions}
    %p = embedding(%at, @table) : f32[{batch}, S, 16]
    %h = add(%x, %p) : f32[B, S, 16]
    %q = linear(%h, @wq) : f32[B, S, 16]
    %q4 = reshape(%q) {{shape = [B, S, 4, 4]}} : f32[B, S, 4, 4]
    %qt = transpose(%q4) {{perm = [0, 2, 1, 3]}} : f32[B, 4, S, 4]
    %qr = rope(%qt, %at, @freq) : f32[B, 4, S, 4]
    %k = linear(%h, @wk) : f32[B, S, 8]
    %k4 = reshape(%k) {{shape = [B, S, 2, 4]}} : f32[B, S, 2, 4]
    %kt = transpose(%k4) {{perm = [0, 2, 1, 3]}} : f32[B, 2, S, 4]
    %kr = rope(%kt, %at, @freq) : f32[B, 2, S, 4]
    %a = attention(%qr, %kr, %kt) {{scale = 0.5, {attention}}} : f32[B, 4, S, 4]
    %at1 = transpose(%a) {{perm = [0, 2, 1, 3]}} : f32[B, S, 4, 4]
    %ar = reshape(%at1) {{shape = [B, S, 16]}} : f32[B, S, 16]
    %o = add(%ar, %h) : f32[B, S, 16]
    {tail}
    %logits = linear(%n, @embed) : f32[B, S, 32]
    return %logits
  }}
}}
"""
COUNTED = """%ar0 = arange() {count = S} : i64[S]
    %at = reshape(%ar0) {shape = [1, S]} : i64[1, S]"""
GIVEN = "%at = reshape(%pos) {shape = [B, S]} : i64[B, S]"
NORM = "%n = rms_norm(%o) : f32[B, S, 16]"


def decoder(*, attention: str = "causal = true", tail: str = NORM, counted: bool = True) -> Module:
    text = DECODER.format(attention=attention, tail=tail, positions=COUNTED if counted else GIVEN,
                          pos_param="" if counted else ", %pos: i64[B, S]", batch="1" if counted else "B")
    rng = np.random.default_rng(0)
    for const, shape in (("embed", (32, 16)), ("table", (64, 16)), ("wq", (16, 16)), ("wk", (8, 16))):
        text = text.replace(f"@{const} : f32[{shape[0]}, {shape[1]}] = dense()",
                            f'@{const} : f32[{shape[0]}, {shape[1]}] = memory(key="{const}")')
    module = parse_module(text)
    for const in module.consts.values():
        if const.name != "freq":
            const.weight = ArrayWeight(rng.standard_normal(const.type.shape).astype(np.float32))
    return module


@pytest.mark.parametrize("counted", [True, False], ids=["arange", "pos-parameter"])
@pytest.mark.parametrize("attention", ["causal = true", "causal = true, window = 3", "causal = true, softcap = 2.0"])
@pytest.mark.parametrize("split", [1, 4, 6])
def test_prefill_and_steps_equal_the_full_forward(counted: bool, attention: str, split: int) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 32, (2, 7))
    pos = np.broadcast_to(np.arange(7), (2, 7))
    full = run(decoder(attention=attention, counted=counted), [ids] if counted else [ids, pos])[0]
    module = decoder(attention=attention, counted=counted)
    run_pipeline(module, parse_pipeline("insert-kv-cache"))
    assert print_module(parse_module(print_module(module))) == print_module(module)
    caches = {"kc0": np.full((2, 2, 9, 4), 7.0), "vc0": np.full((2, 2, 9, 4), 7.0)}
    got = []
    for start, stop in [(0, split), *((i, i + 1) for i in range(split, 7))]:
        logits, *new = run(module, {"ids": ids[:, start:stop], "pos": pos[:, start:stop], **caches})
        caches = dict(zip(caches, new, strict=True))
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, 1), full, rtol=1e-9, atol=1e-9)


def test_take_logits_gives_the_asked_rows() -> None:
    ids = np.random.default_rng(2).integers(0, 32, (2, 7))
    full = run(decoder(), [ids])[0]
    module = decoder()
    run_pipeline(module, parse_pipeline("take-logits,insert-kv-cache"))
    take = np.array([[6, 0, 3], [2, 2, 5]])
    caches = {"kc0": np.zeros((2, 2, 7, 4)), "vc0": np.zeros((2, 2, 7, 4))}
    pos = np.broadcast_to(np.arange(7), (2, 7))
    got = run(module, {"ids": ids, "take": take, "pos": pos, **caches})[0]
    np.testing.assert_allclose(got, full[np.arange(2)[:, None], take], rtol=1e-9)
    linear = next(op for op in module.main.ops if op.results[0] is module.main.returns[0])
    assert str(linear.result.type) == "f32[B, N, 32]"


@pytest.mark.parametrize(("changes", "reason"), [
    ({"attention": "causal = false"}, "sees later positions"),
    ({"tail": "%n = cumsum(%o) {axis = 1} : f32[B, S, 16]"}, "cumsum"),
    ({"tail": "%m = mean(%o) {axis = [1], keep = true} : f32[B, 1, 16]\n    %n = add(%o, %m) : f32[B, S, 16]"}, "mean"),
    ({"tail": "%f = flip(%o) {axes_ = [1]} : f32[B, S, 16]\n    %n = add(%o, %f) : f32[B, S, 16]"}, "flip"),
])
def test_what_is_no_causal_decoder_is_refused(changes: dict[str, str], reason: str) -> None:
    module = decoder(**changes)  # type: ignore[arg-type]
    before = print_module(module)
    with pytest.raises(PassError, match=reason):
        run_pipeline(module, parse_pipeline("insert-kv-cache"))
    assert print_module(module) == before
    verify(module)


def test_a_second_cache_is_refused_before_work_starts() -> None:
    module = decoder()
    with pytest.raises(PassError, match="cannot follow insert-kv-cache"):
        run_pipeline(module, parse_pipeline("insert-kv-cache,insert-kv-cache"))
    assert not module.history
