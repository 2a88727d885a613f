"""The one entry point: what a model may be given as."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from ingot.errors import CheckpointError, IngotError, ParseError
from ingot.frontend.gguf import converted
from ingot.frontend.load import load
from ingot.ir.interpret import run
from ingot.ir.text import print_module
from tests.frontend.examples import eager, inputs_for
from tests.frontend.models import tiny

SOURCE = """
import torch


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x):
        return x * self.factor


def pair():
    return Scale(), torch.zeros(4, 2)


def triple():
    return Scale(), {"x": torch.zeros(4, 2)}, {"dims": {"x": ("N", None)}, "name": "scale", "outputs": ["y"]}


def nothing():
    return 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "scales.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scales", raising=False)
    return "scales"


def test_a_callable_with_example_inputs(package: str) -> None:
    fixed = load(f"{package}:pair")
    assert fixed.name == "pair"
    assert str(fixed.main.params[0].type) == "f32[4, 2]"
    module = load(f"{package}:triple")
    assert module.name == "scale"
    assert str(module.main.params[0].type) == "f32[N, 2]"
    assert module.main.returns[0].hint == "y"
    np.testing.assert_array_equal(run(module, [np.ones((3, 2))])[0], [[2.0, 3.0]] * 3)
    assert module.main.ops[0].loc == "scales.py:11"


def test_a_callable_that_is_not_there_or_gives_no_model(package: str) -> None:
    with pytest.raises(IngotError, match="has no missing"):
        load(f"{package}:missing")
    with pytest.raises(IngotError, match="returned int"):
        load(f"{package}:nothing")
    with pytest.raises(IngotError, match="cannot import no_such_package"):
        load("no_such_package:model")


def test_an_ir_file(package: str, tmp_path: Path) -> None:
    text = print_module(load(f"{package}:triple"))
    (tmp_path / "scale.ir").write_text(text)
    assert print_module(load(tmp_path / "scale.ir")) == text
    (tmp_path / "broken.ir").write_text("module")
    with pytest.raises(ParseError, match=r"broken\.ir:1"):
        load(tmp_path / "broken.ir")


def test_what_is_no_model_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="this is no model"):
        load(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="no such file"):
        load("meta-llama/Llama-2-7b")


# --- GGUF ---------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A llama as llama.cpp stores it: float32, query and key rows interleaved for its rope, a byte-level tokenizer."""
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(config.vocab_size - 6))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for key, tensor in model.state_dict().items():
        name = key.replace("model.layers", "blk")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        array = tensor.numpy()
        if "q_proj" in key or "k_proj" in key:
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    _, model = tiny("llama", num_hidden_layers=1)
    path, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_gguf(path, model)
    module = load(path, cache=cache)
    assert module.meta["source"] == "tiny.gguf"
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)
    (directory,) = cache.iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json",
            "chat_template.jinja"} <= {file.name for file in directory.iterdir()}
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    moved = path.rename(tmp_path / "tiny.gguf.1").rename(path)
    assert converted(moved, cache=cache) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_broken_gguf_file_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        load(tmp_path / "other.gguf", cache=cache)
    _, model = tiny("llama", num_hidden_layers=1)
    write_gguf(tmp_path / "cut.gguf", model)
    whole = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(CheckpointError, match="does not read this GGUF file"):
        load(tmp_path / "cut.gguf", cache=cache)
    assert list(cache.iterdir()) == []


def test_torch_is_not_needed_for_a_text(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "m.ir").write_text("module @m {\n  func @f(%x: f32[2]) -> (f32[2]) {\n    return %x\n  }\n}\n")
    script = (f"import runpy; runpy.run_path('conftest.py')\nfrom ingot.frontend.load import load\n"
              f"load({str(tmp_path / 'm.ir')!r})\nimport sys\n"
              "assert not {'torch', 'transformers'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
    assert torch.get_num_threads() == 1
