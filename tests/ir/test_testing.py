"""What pass authors get from `ingot.testing` is itself sound: random modules, inputs, and a comparison that can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.layout import Transpose
from ingot.ir.ops.pointwise import Neg
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.passes.base import Context, Pass
from ingot.passes.cache.insert_kv_cache import InsertKvCache
from ingot.passes.pipeline import check_order, parse_pipeline
from ingot.passes.quantization.quantize import Quantize
from ingot.testing import (
    Decoder,
    assert_exact,
    copy_module,
    decoder_plans,
    decoders,
    difference,
    examples,
    graphs,
    inputs_for,
    options_of,
    pipelines,
    sizes_for,
)


@given(graphs(), st.integers(0, 99))
def test_random_modules_are_sound_at_every_size(module: Module, seed: int) -> None:
    """They verify, and give finite numbers of the declared shapes."""
    verify(module)
    rng = np.random.default_rng(seed)
    for array in run(module, inputs_for(module, rng)):
        assert np.isfinite(array.astype(np.float64)).all()
    assert len(module.main.ops) <= 120


def test_random_modules_reach_most_ops() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=400, derandomize=True, database=None)
    @given(graphs(most_steps=12))
    def collect(module: Module) -> None:
        seen.update(op.name for op in module.ops)

    collect()
    wanted = {"add", "mul", "where", "clamp", "cast", "reshape", "transpose", "expand", "slice", "split", "concat", "pad", "take",
              "flip", "triangle", "sum", "mean", "max", "softmax", "cumsum", "linear", "matmul", "rms_norm", "layer_norm",
              "attention", "rope", "embedding", "scalar", "full", "arange"}
    assert wanted <= set(seen)


SEARCH = settings(max_examples=2000, database=None, derandomize=True)


def test_failures_shrink_to_a_few_lines() -> None:
    module = find(graphs(), lambda m: any(isinstance(op, Transpose) for op in m.ops), settings=SEARCH)
    assert len(module.main.ops) <= 2
    assert len(module.main.params) <= 2
    assert len(print_module(module).splitlines()) < 15


@pytest.mark.parametrize(("raw", "wanted"), [
    (False, lambda op: op.name == "attention" and op.window == 3 and op.heads[0] > op.heads[1]),
    (True, lambda op: op.name == "tanh"),
])
def test_failing_decoders_shrink_to_the_parts_that_matter(raw: bool, wanted: Callable[[Op], bool]) -> None:
    module = find(decoders(raw=raw), lambda m: any(map(wanted, m.ops)), settings=SEARCH)
    assert len(print_module(module).splitlines()) <= 45
    assert sum(op.name == "embedding" for op in module.ops) == 1
    assert sum(op.name == "attention" for op in module.ops) == 1


def test_a_failure_shows_the_text_of_its_module_as_it_was_drawn() -> None:
    @settings(max_examples=1, database=None, derandomize=True, phases=[Phase.generate])
    @given(decoders())
    def spoils(module: Module) -> None:
        module.main.set_returns([])
        raise ValueError("spoilt")

    with pytest.raises(ValueError, match="spoilt") as caught:
        spoils()
    notes = "\n".join(caught.value.__notes__)
    assert "module @decoder {" in notes
    assert "return %logits" in notes


@settings(max_examples=25)
@given(decoder_plans(), st.booleans(), st.integers(0, 99))
def test_random_decoders_are_sound(plan: Decoder, raw: bool, seed: int) -> None:
    """They verify, print and parse, look as a frontend's do, and give finite logits that depend on earlier ids alone."""
    module = plan.module(raw=raw)
    verify(module)
    assert print_module(parse_module(print_module(module))) == print_module(module)
    assert [p.hint for p in module.main.params] == ["ids", "pos"][:1 if plan.counted else 2]
    assert [str(v.type) for v in module.main.returns] == [f"f32[B, S, {plan.vocab}]"]
    assert module.meta == {"kind": "decoder", "context": plan.context, "vocab": plan.vocab}
    rng = np.random.default_rng(seed)
    inputs = {"ids": rng.integers(0, plan.vocab, (2, 6)), "pos": np.tile(np.arange(6), (2, 1))}
    [whole] = run(module, inputs)
    assert np.isfinite(whole).all()
    inputs["ids"][:, 4:] = (inputs["ids"][:, 4:] + 1) % plan.vocab
    [changed] = run(module, inputs)
    assert difference(whole[:, :4], changed[:, :4], rtol=1e-9) == ""


def test_random_decoders_reach_the_whole_space() -> None:
    seen: dict[str, set[object]] = {}

    @settings(max_examples=150, derandomize=True, database=None)
    @given(decoder_plans())
    def collect(plan: Decoder) -> None:
        for name, value in {**vars(plan), **vars(plan.spelling)}.items():
            seen.setdefault(name, set()).add(value)

    collect()
    assert seen["positions"] == {"none", "learned", "rope", "alibi"}
    assert seen["place"] == {"none", "pre", "post", "sandwich", "sum"}
    assert seen["qkv"] == {"separate", "fused", "per_head"}
    assert seen["qk_norm"] == {"none", "head", "whole"}
    assert seen["mlp"] == {"none", "plain", "gated"}
    assert len(seen["activation"]) == 6
    assert seen["scores"] == {"op", "heads", "merged"}
    assert all(len(values) > 1 for name, values in seen.items() if name not in ("vocab", "context", "spelling"))


@settings(max_examples=50)
@given(pipelines(), pipelines("encoder"), pipelines(contracts=("exact",)))
def test_random_pipelines_are_in_a_legal_order(first: list[Pass], encoder: list[Pass], exact: list[Pass]) -> None:
    for found in (first, encoder, exact):
        check_order(found, Module())
        assert parse_pipeline(",".join(map(str, found))) == found
    assert not {"insert-kv-cache", "take-logits"} & {p.name for p in encoder}
    assert {p.contract for p in exact} <= {"exact"}


def test_pipelines_respect_what_was_done_to_the_module_before() -> None:
    module = Decoder().module()
    module.meta["facts"] = "quantized cached"
    seen: set[str] = set()

    @settings(max_examples=60, derandomize=True, database=None)
    @given(pipelines(module))
    def collect(found: list[Pass]) -> None:
        seen.update(p.name for p in found)

    collect()
    assert {"canonicalize", "recognize", "fuse"} <= seen
    assert not {"quantize", "insert-kv-cache", "take-logits"} & seen


def test_options_go_together_and_may_be_given() -> None:
    seen: set[str] = set()

    @settings(max_examples=60, derandomize=True, database=None)
    @given(options_of(Quantize), options_of(Quantize, format="nf4"))
    def collect(any_: Pass, nf4: Pass) -> None:
        seen.add(str(any_))
        assert parse_pipeline(str(nf4))[0] == nf4  # one that would be refused raises
        assert "format=nf4" in str(nf4)

    collect()
    assert len(seen) > 20


def test_a_planted_cache_bug_is_found_on_a_small_decoder() -> None:
    """A window that is off by one shows on a decoder with nothing but that window."""
    def broken(module: Module) -> bool:
        [before] = run(module, inputs := inputs_for(module, np.random.default_rng(0), {"B": 1, "S": 5}))
        InsertKvCache().run(module, Context())
        for op in [op for op in module.ops if op.name == "attention" and op.attrs["window"]]:
            module.main.insert(twin := op.clone(window=op.attrs["window"] + 1), before=op)
            module.main.replace(op.results[0], twin.results[0])
        caches = {p.hint or "": np.zeros((1, p.type.dims[1], 5, p.type.dims[3])) for p in module.main.reuse.values()}
        after = run(module, {**inputs, "pos": np.arange(5)[None], **caches})[0]
        return difference(before, after, rtol=1e-9) != ""

    plan = find(decoder_plans().filter(lambda p: p.positions != "alibi"), lambda p: broken(p.module()), settings=SEARCH)
    assert plan == Decoder(windows=plan.windows, seed=plan.seed)
    assert plan.windows == (1,)


DECODER = """module @m {
  dim B in 1..3
  dim S in 1..4
  dim T in 6..9
  const @embed : f32[11, 8] = memory()
  func @forward(%ids: i32[B, S], %pos: i64[B, S], %mask: i64[B, T], %kc: f32[B, 2, T, 4], %flag: bool[B]) -> (f32[B, 2, T, 4]) {
    %wide = cast(%ids) {dtype = i64} : i64[B, S]
    %x = embedding(%wide, @embed) : f32[B, S, 8]
    %heads = reshape(%x) {shape = [B, S, 2, 4]} : f32[B, S, 2, 4]
    %k = transpose(%heads) {perm = [0, 2, 1, 3]} : f32[B, 2, S, 4]
    %kc1 = cache.write(%kc, %k, %pos) : f32[B, 2, T, 4]
    %a = attention(%k, %kc1, %kc1, pos=%pos, mask=%mask) {scale = 0.5, causal = true} : f32[B, 2, S, 4]
    return %kc1
  }
}"""


@given(st.integers(0, 999))
def test_inputs_stay_in_their_domain(seed: int) -> None:
    """Ids (behind a cast) index the table, positions count up inside the cache, masks show the first key."""
    module = parse_module(DECODER)
    inputs = inputs_for(module, np.random.default_rng(seed))
    b, s = inputs["ids"].shape
    t = inputs["mask"].shape[1]
    assert (1 <= b <= 3, 1 <= s <= 4, 6 <= t <= 9) == (True, True, True)
    assert inputs["ids"].dtype == np.int32
    assert 0 <= inputs["ids"].min() <= inputs["ids"].max() < 11
    assert 0 <= inputs["pos"].min() <= inputs["pos"].max() < t
    assert (np.diff(inputs["pos"], axis=1) == 1).all()
    assert (inputs["mask"][:, 0] == 1).all()
    assert set(np.unique(inputs["mask"])) <= {0, 1}
    assert inputs["flag"].dtype == np.bool_


def test_sizes_may_be_given() -> None:
    module = parse_module(DECODER)
    assert sizes_for(module, np.random.default_rng(0), B=7)["B"] == 7
    assert inputs_for(module, np.random.default_rng(0), {"B": 2, "S": 3})["ids"].shape == (2, 3)


def _module(body: str, result: str = "f32[S, 4]") -> Module:
    return parse_module(f"""module @m {{
  dim S in 1..6
  func @forward(%x: f32[S, 4]) -> ({result}) {{
    {body}
    return %y
  }}
}}""")


def test_the_comparison_accepts_another_order_of_sums() -> None:
    assert_exact(_module("%y = add(%x, %x) : f32[S, 4]"),
                 _module("%t = scalar() {value = 2.0} : f32[]\n%y = mul(%t, %x) : f32[S, 4]"))


@pytest.mark.parametrize(("body", "result", "message"), [
    ("%t = scalar() {value = 1e-08} : f32[]\n%y = add(%x, %t) : f32[S, 4]", "f32[S, 4]", "off by 1e-08"),
    ("%y = slice(%x) {axis = 1, start = 0, stop = 3} : f32[S, 3]", "f32[S, 3]", r"float64\[1, 4\] became float64\[1, 3\]"),
    ("%y = cast(%x) {dtype = i64} : i64[S, 4]", "i64[S, 4]", r"became int64\[1, 4\]"),
    ("%t = log(%x) : f32[S, 4]\n%z = sub(%t, %t) : f32[S, 4]\n%y = add(%x, %z) : f32[S, 4]", "f32[S, 4]", "infinities or NaN"),
    # right at the least size alone
    ("%y = flip(%x) {axes_ = [0]} : f32[S, 4]", "f32[S, 4]", r"result 0 at \{'S': [2-6]\}: off by"),
])
def test_the_comparison_finds_what_differs(body: str, result: str, message: str) -> None:
    same = "%z = scalar() {value = 0.0} : f32[]\n%y = add(%x, %z) : f32[S, 4]"
    with pytest.raises(AssertionError, match=message) as caught:
        assert_exact(_module(same), _module(body, result), rounds=4)
    assert "--- before\n# ingot ir v1" in str(caught.value)


def test_difference() -> None:
    a = np.array([1.0, np.nan, np.inf])
    assert difference(a, a.copy(), rtol=0) == ""
    assert difference(a, np.array([1.0, np.nan, -np.inf]), rtol=0) != ""
    assert difference(np.array([1e6]), np.array([1e6 + 1e-4]), rtol=1e-9) == ""
    assert difference(np.array([1.0]), np.array([1.0 + 1e-8]), rtol=1e-9) == "off by 1e-08, 1e-09 is allowed"


def test_a_changed_copy_is_told_from_its_original() -> None:
    module = _module("%y = relu(%x) : f32[S, 4]")
    twin = copy_module(module)
    neg = twin.main.insert(Neg(twin.main.returns[0]))
    twin.main.set_returns([neg.result])
    with pytest.raises(AssertionError, match="off by"):
        assert_exact(module, twin)


def test_examples_are_of_their_op() -> None:
    ids = [e.id for e in examples()]
    assert len(set(ids)) == len(ids)
    for example in examples():
        assert [op.name for op in example.module().ops] == [example.cls.name]
        assert {p.hint for p in example.module().main.params} >= set(example.inputs(np.random.default_rng(0)))
