"""What an imported Hugging Face model looks like: inputs, facts, attributes of its attention, element types, positions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from ingot.errors import CheckpointError, IngotError, UnsupportedOp
from ingot.frontend.huggingface import import_model
from ingot.frontend.load import load
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention
from ingot.ir.types import bf16, f32, f64, i64
from ingot.ir.weights import FileWeight, UnknownWeight
from tests.frontend.examples import eager, imported, inputs_for
from tests.frontend.models import saved, tiny


def attentions(module: Module) -> list[Attention]:
    return [op for op in module.ops if isinstance(op, Attention)]


def test_a_decoder_takes_ids_and_positions_and_says_what_it_is(tmp_path: Path) -> None:
    module = load(saved(tiny("llama", tie_word_embeddings=True)[1], tmp_path / "my model"))
    assert [(p.hint, str(p.type)) for p in module.main.params] == [("ids", "i64[B, S]"), ("pos", "i64[B, S]")]
    assert [(v.hint, str(v.type)) for v in module.main.returns] == [("logits", "f32[B, S, 96]")]
    assert module.dims == {"B": (1, 64), "S": (1, 64)}
    assert module.name == "my_model"
    assert module.meta == {"kind": "decoder", "model_type": "llama", "architecture": "LlamaForCausalLM", "dtype": "f32",
                           "context": 64, "vocab": 96, "source": "my model"}
    assert "lm_head.weight" not in module.consts
    assert module.main.returns[0].op is not None
    assert module.main.returns[0].op.operands[1] is module.consts["model.embed_tokens.weight"]


def test_weights_are_handles_and_ops_know_their_source_line(tmp_path: Path) -> None:
    module = load(saved(tiny("llama")[1], tmp_path / "m"))
    weight = module.consts["model.layers.1.mlp.up_proj.weight"].weight
    assert isinstance(weight, FileWeight)
    assert (weight.path, weight.key) == (tmp_path / "m/model.safetensors", "model.layers.1.mlp.up_proj.weight")
    places = {op.name: op.loc for op in module.ops}
    assert all(str(place).startswith("modeling_llama.py:") for place in places.values())


def test_positions_are_an_input() -> None:
    module, _ = imported("llama")
    inputs = inputs_for(module)
    moved = inputs | {"pos": inputs["pos"] + 5}
    a, b = (run(module, x)[0] for x in (inputs, moved))
    np.testing.assert_allclose(a, b, atol=1e-4)  # rope is relative
    c = run(module, inputs | {"pos": inputs["pos"] * 2})[0]
    assert np.abs(a - c).max() > 1e-3


def test_windows_caps_and_scales_reach_the_attention() -> None:
    gemma2 = attentions(imported("gemma2")[0])
    assert [op.window for op in gemma2] == [4, None]
    assert [op.softcap for op in gemma2] == [50.0, 50.0]
    assert all(op.causal for op in gemma2)
    assert {op.scale for op in attentions(import_model(tiny("granite", num_hidden_layers=1)[1]))} == {0.25}
    assert {op.heads for op in attentions(imported("llama")[0])} == {(4, 2)}


def test_an_encoder_sees_what_its_mask_shows() -> None:
    module, _ = imported("bert")
    assert [p.hint for p in module.main.params] == ["ids", "mask", "types"]
    assert [v.hint for v in module.main.returns] == ["hidden", "pooled"]
    assert not any(op.causal for op in attentions(module))
    inputs = inputs_for(module)
    hidden = inputs["mask"] == 0
    other = inputs | {"ids": np.where(hidden, 7, inputs["ids"])}
    a, b = (run(module, x)[0] for x in (inputs, other))
    np.testing.assert_allclose(a[~hidden], b[~hidden], atol=1e-12)
    assert np.abs(a[hidden] - b[hidden]).max() > 1e-3


def test_a_model_that_computes_on_its_mask_gets_a_tensor() -> None:
    class Opened(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **rest: Any) -> Any:
            hook = self.model.layers[0].register_forward_pre_hook(open_mask, with_kwargs=True)
            try:
                return super().forward(input_ids=input_ids, position_ids=position_ids, **rest)
            finally:
                hook.remove()

    def open_mask(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": mask if mask is None else mask[:, :, :, :]}

    config, model = tiny("llama", num_hidden_layers=1)
    opened = Opened(config).eval()
    opened.load_state_dict(model.state_dict())
    Opened.__module__, Opened.__name__ = LlamaForCausalLM.__module__, "LlamaForCausalLM"
    module = import_model(opened)
    (op,) = attentions(module)
    assert op.bias is not None
    assert not op.causal
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)


def test_positions_behind_the_padding_row_shorten_the_context() -> None:
    assert import_model(tiny("roberta", num_hidden_layers=1)[1]).meta["context"] == 62  # 64 rows, padding_idx 1


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_float64_reference_equals_the_model_in_float64(name: str, tmp_path: Path) -> None:
    _, model = tiny(name)
    path = saved(model, tmp_path / name)
    inputs = inputs_for(imported(name)[0])
    expected = eager(model.double(), inputs)[0]
    np.testing.assert_allclose(run(imported(name)[0], inputs, precision="f64")[0], expected, atol=1e-11)
    wide = load(path, dtype="f64")
    assert wide.main.returns[0].type.dtype == f64
    np.testing.assert_allclose(run(wide, inputs, precision="declared")[0], expected, atol=1e-11)


def test_bfloat16_is_kept_or_widened_as_asked(tmp_path: Path) -> None:
    _, model = tiny("llama")
    path = saved(model.to(torch.bfloat16), tmp_path / "m")
    narrow, wide = load(path, dtype="bf16"), load(path)
    key = "model.layers.0.mlp.up_proj.weight"
    assert narrow.consts[key].type.dtype == bf16
    assert isinstance(narrow.consts[key].weight, FileWeight)
    assert wide.consts[key].type.dtype == f32
    assert wide.consts[key].weight.origin == f'safetensors(file="model.safetensors", key="{key}", from="bf16")'
    stored = narrow.consts[key].weight.materialize()
    np.testing.assert_array_equal(wide.consts[key].weight.materialize(), stored.astype(np.float32))
    assert all(v.type.dtype in (f32, i64) for op in wide.ops for v in op.results)
    assert narrow.main.returns[0].type.dtype == f32  # logits are never narrower
    assert narrow.consts["model.rotary_emb.inv_freq"].type.dtype == f32
    inputs = inputs_for(wide)
    expected = eager(type(model).from_pretrained(path, dtype=torch.float32), inputs)[0]
    np.testing.assert_allclose(run(wide, inputs, precision="declared")[0], expected, atol=1e-5)
    np.testing.assert_allclose(run(narrow, inputs, precision="declared")[0], expected, atol=0.1)


def test_an_unknown_element_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngotError, match="cannot compute in int8") as caught:
        load(saved(tiny("llama")[1], tmp_path / "m"), dtype="int8")
    assert "bf16" in str(caught.value.hint)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0] * 4,
                 "original_max_position_embeddings": 16, "factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_ropes_have_their_frequencies_without_the_model_in_memory(kind: str, tmp_path: Path) -> None:
    _, model = tiny("llama", num_hidden_layers=1, rope_parameters={"rope_theta": 100.0} | ROPES[kind])
    module = load(saved(model, tmp_path / "m"))
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)
    assert module.meta["context"] == (16 if kind == "longrope" else 64)  # its short frequencies hold up to there


def test_the_model_is_left_as_it_was() -> None:
    _, model = tiny("llama", num_hidden_layers=2)
    model.train()
    model.model.layers[0].eval()
    import_model(model)
    assert model.config._attn_implementation == "eager"
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    with pytest.raises(UnsupportedOp, match="encoder-decoder"):
        import_model(T5ForConditionalGeneration(config))


def test_an_architecture_is_traced_without_weights(tmp_path: Path) -> None:
    config, model = tiny("gemma3")
    config.save_pretrained(tmp_path)
    module = load(tmp_path, weights=False)
    unknown = {name for name, const in module.consts.items() if isinstance(const.weight, UnknownWeight)}
    computed = dict(model.named_non_persistent_buffers())
    buffers = set(module.consts) & set(computed)
    assert len([name for name in buffers if "inv_freq" in name]) == 2  # one per kind of layer
    assert unknown == set(module.consts) - buffers
    for name in buffers:
        np.testing.assert_array_equal(module.consts[name].weight.materialize(), computed[name].numpy())
    with pytest.raises(CheckpointError, match="no weights"):
        load(tmp_path)


def test_ten_billion_parameters_take_no_memory() -> None:
    """Two layers as wide as those of Llama 3.1 405B."""
    script = ("import resource\nfrom transformers import LlamaConfig\nfrom ingot.frontend.architecture import build\n"
              "from ingot.frontend.huggingface import import_model\n"
              "config = LlamaConfig(vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=2,\n"
              "                     num_attention_heads=128, num_key_value_heads=8, architectures=['LlamaForCausalLM'])\n"
              "module = import_model(build(config))\n"
              "parameters = sum(c.type.size for c in module.consts.values())\n"
              "print(parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", f"import runpy; runpy.run_path('conftest.py')\n{script}"], cwd=root, check=True,
                          capture_output=True, text=True)
    parameters, kilobytes = map(int, done.stdout.split())
    assert parameters > 1e10
    assert kilobytes < 1.5e6
