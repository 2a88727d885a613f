"""Real architectures: after recognition only ops that mean something remain, and the float64 reference is the same."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ingot.frontend.huggingface import import_model
from ingot.ir.text import parse_module
from ingot.passes.base import Context
from ingot.passes.fusion.fuse import Fuse
from ingot.passes.recognition.recognize import Recognize

MODELS = Path(__file__).parents[1] / "frontend" / "models.py"
MOVES = {"reshape", "transpose", "split", "slice", "scalar"}
LAYERS = {"embedding", "linear", "add", "mul", "attention"}

RMS = {"rms_norm", "rope"}
EXPECTED: dict[str, tuple[set[str], int, int]] = {
    # name: ops beyond those every transformer has, ropes, norms
    "llama": (RMS | {"silu"}, 4, 5),
    "mistral": (RMS | {"silu"}, 4, 5),
    "qwen2": (RMS | {"silu"}, 4, 5),
    "qwen3": (RMS | {"silu"}, 4, 9),
    "gemma2": (RMS | {"gelu", "tanh"}, 4, 9),  # tanh: the cap on the logits
    "gemma3": (RMS | {"gelu"}, 4, 13),
    "phi3": (RMS | {"silu"}, 4, 5),
    "gpt2": ({"layer_norm", "gelu"}, 0, 5),
    "gpt_neox": ({"layer_norm", "rope", "gelu"}, 4, 5),
    "olmo2": (RMS | {"silu"}, 4, 9),
    "granite": (RMS | {"silu"}, 4, 5),
    "smollm3": (RMS | {"silu"}, 2, 5),
    "starcoder2": ({"layer_norm", "rope", "gelu"}, 4, 5),
    "stablelm": ({"layer_norm", "rope", "silu"}, 4, 5),
    "bert": ({"layer_norm", "gelu", "tanh"}, 0, 5),  # tanh: the pooler
    "vit": ({"layer_norm", "gelu", "conv", "concat", "expand"}, 0, 5),  # concat, expand: the class token
}


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_models", MODELS)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    return module.tiny


@pytest.mark.parametrize("name", EXPECTED)
def test_architecture(tiny, check_exact, name):
    module = import_model(tiny(name)[1], name=name)
    check_exact(module, "recognize")
    count = Counter(op.name for op in module.ops)
    extra, ropes, norms = EXPECTED[name]
    assert set(count) <= MOVES | LAYERS | extra
    assert (count["rope"], count["rms_norm"] + count["layer_norm"]) == (ropes, norms)
    assert count["attention"] == 2
    assert all(op.causal == (name not in ("bert", "vit")) and op.bias is None for op in module.ops if op.name == "attention")

    check_exact(module, "canonicalize,fold-constants,cse,fuse")
    fused = Counter(op.name for op in module.ops)
    pre_norm = fused["skip_rms_norm"] + fused["skip_layer_norm"]
    assert pre_norm + fused["rms_norm"] + fused["layer_norm"] == norms
    assert pre_norm > 0
    assert fused["linear"] < count["linear"] or name in ("phi3", "gpt2", "gpt_neox")  # those come with fused projections


def test_position_bias_stays_and_padding_becomes_a_mask(tiny, check_exact):
    """MPNet writes its attention out, adds a learned bias by distance, and picks the padding mask by position."""
    module = import_model(tiny("mpnet")[1], name="mpnet")
    check_exact(module, "recognize")
    attentions = [op for op in module.ops if op.name == "attention"]
    assert len(attentions) == 2
    for op in attentions:
        assert op.mask is module.main.param("mask")
        assert op.bias is not None
        assert not op.causal
    assert not {"softmax", "matmul", "take"} & {op.name for op in module.ops}


WRITTEN_OUT = {
    "bloom": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 1, "n_head": 4}, 1e-9),
    "falcon": ("FalconConfig", "FalconForCausalLM", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}, 1e-9),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", {
        "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32, "rotary_dim": 4}, 1e-9),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_causal_attention_written_out(check_exact, name):
    """Models that do not take transformers' attention interface: masks and key heads are read from the graph."""
    import transformers

    config_name, model_name, arguments, tolerance = WRITTEN_OUT[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, config_name)(vocab_size=64, bos_token_id=1, eos_token_id=2, **arguments)
        model = getattr(transformers, model_name)(config).eval()
    module = import_model(model, name=name)
    check_exact(module, "recognize", tolerance=tolerance)
    [attention] = [op for op in module.ops if op.name == "attention"]
    assert attention.causal
    assert (attention.bias is not None) == (name == "bloom")
    assert attention.heads == ((4, 1) if name == "falcon" else (4, 4))
    assert not {"softmax", "matmul", "where", "le", "tanh"} & {op.name for op in module.ops}


def reasons(text: str, p) -> list[tuple[str, str]]:
    ctx = Context(misses=[])
    p.run(parse_module(text), ctx)
    assert ctx.misses is not None
    return [(miss.rule, miss.reason) for miss in ctx.misses]


def test_a_near_miss_says_why():
    text = """module @m {
      dim B in 1..4
      const @w : f32[4, 8] = file(key="w")
      const @v : f32[4, 8] = file(key="v")
      func @forward(%x: f32[B, 4, 8], %y: f32[B, 4, 8]) -> (f32[B, 4, 8], f32[B, 4, 4]) {
        %b = mul(%x, %x) : f32[B, 4, 8]
        %c = mean(%b) {axis = [1], keep = true} : f32[B, 1, 8]
        %eps = scalar() {value = 1e-06} : f32[]
        %d = add(%c, %eps) : f32[B, 1, 8]
        %e = rsqrt(%d) : f32[B, 1, 8]
        %f = mul(%x, %e) : f32[B, 4, 8]
        %g = linear(%x, @w) : f32[B, 4, 4]
        %s = silu(%g) : f32[B, 4, 4]
        %u = linear(%y, @v) : f32[B, 4, 4]
        %m = mul(%s, %u) : f32[B, 4, 4]
        return %f, %m
      }
    }"""
    assert ("BareRmsNorm", "mean is over axes [1], not the last one alone") in reasons(text, Recognize())
    [gate_up] = [reason for rule, reason in reasons(text, Fuse()) if rule == "GateUp" and "read different inputs" in reason]
    assert "%u" in gate_up
    assert "%g" in gate_up


WRITTEN = """module @m {
  dim B in 1..4
  dim S in 1..16
  func @forward(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]) -> (f32[B, 4, S, 8]) {
    %k1 = reshape(%k) {shape = [B, ONE, S, 8]} : f32[B, ONE, S, 8]
    %k2 = expand(%k1) {shape = [B, 2, 2, S, 8]} : f32[B, 2, 2, S, 8]
    %k3 = reshape(%k2) {shape = [B, 4, S, 8]} : f32[B, 4, S, 8]
    %v1 = reshape(%v) {shape = [B, ONE, S, 8]} : f32[B, ONE, S, 8]
    %v2 = expand(%v1) {shape = [B, 2, 2, S, 8]} : f32[B, 2, 2, S, 8]
    %v3 = reshape(%v2) {shape = [B, 4, S, 8]} : f32[B, 4, S, 8]
    %t = transpose(%k3) {perm = [0, 1, 3, 2]} : f32[B, 4, 8, S]
    %s = matmul(%q, %t) : f32[B, 4, S, S]
    %columns = arange() {count = S} : i64[S]
    %rows = reshape(%columns) {shape = [S, 1]} : i64[S, 1]
    %hidden = COMPARED : bool[S, S]
    %shut = scalar() {value = -inf} : f32[]
    %m = where(%hidden, %shut, %s) : f32[B, 4, S, S]
    %p = softmax(%m) : f32[B, 4, S, S]
    %o = matmul(%p, %v3) : f32[B, 4, S, 8]
    return %o
  }
}
"""


@pytest.mark.parametrize("compared", ["gt(%columns, %rows)", "lt(%rows, %columns)"])
@pytest.mark.parametrize(("one", "key_heads"), [("2, 1", 2), ("1, 2", 4)], ids=["repeated", "tiled"])
def test_keys_hidden_by_a_comparison_under_heads_repeated_or_in_tiles(check_exact, one, key_heads, compared):
    """Attention shares repeated heads; in tiles they stand in another order and stay."""
    module = parse_module(WRITTEN.replace("ONE", one).replace("COMPARED", compared))
    check_exact(module, "recognize")
    [attention] = [op for op in module.ops if op.name == "attention"]
    assert (attention.causal, attention.window, attention.bias, attention.mask) == (True, None, None, None)
    assert attention.k.type.dims[1] == key_heads
