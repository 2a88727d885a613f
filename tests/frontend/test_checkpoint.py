"""Checkpoint directories: one file or shards, tied and renamed tensors; and everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.errors import CheckpointError
from ingot.frontend.checkpoint import INDEX, SINGLE, read_checkpoint
from ingot.frontend.load import load
from ingot.ir.interpret import run
from ingot.ir.weights import FileWeight
from tests.frontend.examples import eager, inputs_for
from tests.frontend.models import saved, tiny


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path / SINGLE)), path / SINGLE, {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", num_hidden_layers=1)[1], tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture
def llama(original: Path, tmp_path: Path) -> Path:
    """A whole checkpoint to damage."""
    return Path(shutil.copytree(original, tmp_path / "llama"))


# --- what works ---------------------------------------------------------------------------------------------------


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    _, model = tiny("llama", num_hidden_layers=1)
    path = saved(model, tmp_path / "m", max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    module = load(path)
    files = {c.weight.path.name for c in module.consts.values() if isinstance(c.weight, FileWeight)}
    assert len(files) > 2
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)


def test_a_base_model_reads_the_checkpoint_of_a_model_with_a_head(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    config, model = tiny("bert", num_hidden_layers=1)
    torch.manual_seed(0)
    whole = BertForMaskedLM(config).eval()
    whole.bert.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("pooler")})
    path = saved(whole, tmp_path / "m")
    edit_json(path / "config.json", architectures=["BertForMaskedLM"])
    logits = load(path)
    inputs = inputs_for(logits)
    np.testing.assert_allclose(run(logits, inputs, precision="declared")[0], eager(whole, inputs)[0], atol=1e-5)


def test_a_model_with_a_head_reads_the_checkpoint_of_its_base(tmp_path: Path) -> None:
    """Keys with and without the base model's prefix are the same; the head itself is then missing, and named."""
    path = saved(tiny("bert", num_hidden_layers=1)[1], tmp_path / "m")
    edit_json(path / "config.json", architectures=["BertForTokenClassification"])
    with (pytest.raises(CheckpointError, match=r"2 tensors are missing: classifier\.bias, classifier\.weight"),
          pytest.warns(UserWarning, match=r"pooler\.dense\.weight")):
        load(path)


def test_old_names_of_norms_are_understood(tmp_path: Path) -> None:
    _, model = tiny("bert", num_hidden_layers=1)
    path = saved(model, tmp_path / "m")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {next((k.replace(a, b) for a, b in old.items() if k.endswith(a)), k): v for k, v in tensors.items()}

    edit_tensors(path, rename)
    module = load(path)
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)


def test_experts_stored_one_by_one_are_joined_when_read(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)).eval()
    path = saved(model, tmp_path / "m")
    assert any("experts.3.w1" in key for key in read_checkpoint(path).tensors)
    module = load(path)
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)


def test_tied_weights_stored_with_other_numbers_are_not_tied(tmp_path: Path) -> None:
    _, model = tiny("llama", num_hidden_layers=1, tie_word_embeddings=False)
    path = saved(model, tmp_path / "m")
    edit_json(path / "config.json", tie_word_embeddings=True)
    module = load(path)
    assert "lm_head.weight" in module.consts
    inputs = inputs_for(module)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)


def test_a_tied_weight_stored_under_its_second_name_is_found(llama: Path) -> None:
    edit_json(llama / "config.json", tie_word_embeddings=True)
    edit_tensors(llama, lambda t: {k: v for k, v in t.items() if k != "model.embed_tokens.weight"})
    module = load(llama)
    weight = module.consts["model.embed_tokens.weight"].weight
    assert isinstance(weight, FileWeight)
    assert weight.key == "lm_head.weight"


def test_tensors_nobody_uses_are_named_in_a_warning(llama: Path) -> None:
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"  # older checkpoints store it: nothing to say about that
    edit_tensors(llama, lambda t: t | {"mtp.weight": torch.zeros(3), old: torch.ones(4)})
    with pytest.warns(UserWarning, match=r"1 tensors are no part of LlamaForCausalLM and stay unused: mtp\.weight"):
        load(llama)


# --- what does not ------------------------------------------------------------------------------------------------


def refused(path: Path, *parts: str) -> None:
    """Loading raises one CheckpointError whose text has all the parts."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for part in parts:
        assert part in str(caught.value)


def test_a_truncated_file(llama: Path) -> None:
    whole = (llama / SINGLE).read_bytes()
    (llama / SINGLE).write_bytes(whole[:-100])
    refused(llama, "truncated", SINGLE)
    (llama / SINGLE).write_bytes(whole[:50])
    refused(llama, "ends inside its header")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = saved(tiny("llama")[1], tmp_path / "m", max_shard_size="20KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(path, "missing", shard.name, str(path))


def test_an_index_that_promises_what_a_shard_does_not_hold(tmp_path: Path) -> None:
    path = saved(tiny("llama")[1], tmp_path / "m", max_shard_size="20KB")
    places = json.loads((path / INDEX).read_text())["weight_map"]
    shard = places["model.norm.weight"]
    edit_json(path / INDEX, weight_map=places | {"model.extra.weight": shard})
    refused(path, "model.extra.weight", shard)
    edit_json(path / INDEX, weight_map={k: "../outside.safetensors" for k in places})
    refused(path, "missing ../outside.safetensors")
    edit_json(path / INDEX, weight_map=None)
    refused(path, "no weight_map")


def test_missing_tensors_are_listed(llama: Path) -> None:
    edit_tensors(llama, lambda t: {k: v for k, v in t.items() if "norm" not in k})
    refused(llama, "3 tensors are missing", "model.layers.0.input_layernorm.weight", "model.norm.weight")


def test_a_wrong_shape(llama: Path) -> None:
    edit_tensors(llama, lambda t: t | {"model.norm.weight": torch.ones(31)})
    refused(llama, "model.norm.weight", "[31]", "[32]")


def test_no_architecture_or_an_unknown_one(llama: Path) -> None:
    edit_json(llama / "config.json", architectures=None)
    refused(llama, "names no architecture", "LlamaForCausalLM")
    edit_json(llama / "config.json", architectures=["LlamaForTeleportation"])
    refused(llama, "no architecture LlamaForTeleportation")
    edit_json(llama / "config.json", architectures=["LlamaConfig"])
    refused(llama, "no architecture LlamaConfig")


def test_an_unknown_model_type_and_code_in_the_checkpoint(llama: Path) -> None:
    edit_json(llama / "config.json", model_type="zork")
    refused(llama, "does not know the model type zork")
    edit_json(llama / "config.json", auto_map={"AutoModel": "modeling_zork.Zork"})
    refused(llama, "comes with the checkpoint")
    edit_json(llama / "config.json", model_type=None)
    refused(llama, "names no model_type")


def test_a_configuration_no_model_can_have(llama: Path) -> None:
    edit_json(llama / "config.json", num_attention_heads=7)
    refused(llama, "config.json")


def test_broken_json(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    refused(llama, "config.json", "not JSON")
    (llama / "config.json").write_text("[1]")
    refused(llama, "JSON object")


def test_pickled_weights_are_refused_unread(llama: Path) -> None:
    (llama / SINGLE).unlink()
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04not a pickle")
    refused(llama, "pytorch_model.bin", "save_pretrained")


def test_no_weights_no_config_no_directory(llama: Path, tmp_path: Path) -> None:
    (llama / SINGLE).unlink()
    refused(llama, "no weights", "weights=False")
    (llama / "config.json").unlink()
    refused(llama, "no config.json")
    refused(tmp_path / "nowhere", "no such file or directory")
