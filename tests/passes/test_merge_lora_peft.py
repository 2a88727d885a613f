"""merge-lora against peft itself: the same adapters, trained by nobody, merged by both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.backends.torch.executor import Executor
from ingot.frontend.load import load
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.passes.lora.merge_lora import MergeLora
from ingot.passes.pipeline import run_pipeline
from tests.frontend.models import saved, tiny

peft = pytest.importorskip("peft", reason="peft is not installed: merged weights are not compared with its own")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of tied weights, of every setting it corrects, ...

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """bases(name, **changes): the module of a tiny model, traced once."""
    made: dict[str, Module] = {}

    def get(name: str, **changes: Any) -> Module:
        key = repr((name, changes))
        if key not in made:
            made[key] = load(saved(tiny(name, **changes)[1], tmp_path_factory.mktemp(name)))
        return copy_module(made[key])

    return get


def random_adapter(path: Path, seed: int, name: str, changes: dict[str, Any], config: dict[str, Any]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(tiny(name, **changes)[1], peft.LoraConfig(init_lora_weights=False, **config))
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in key and "lora_B" not in key:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(path)
    return path


def with_adapters(name: str, changes: dict[str, Any], paths: list[Path], scale: tuple[float, ...] = ()) -> Any:
    """peft's model with all adapters active."""
    names = [f"a{i}" for i in range(len(paths))]
    model = peft.PeftModel.from_pretrained(tiny(name, **changes)[1], paths[0], adapter_name=names[0])
    for path, key in list(zip(paths, names))[1:]:
        model.load_adapter(path, adapter_name=key)
    model.base_model.set_adapter(names)
    for part in model.modules():
        if isinstance(part, peft.tuners.lora.LoraLayer):
            for key, factor in zip(names, scale):
                part.set_scale(key, factor)
    return model.eval()


def ours(module: Module, paths: list[Path], scale: tuple[float, ...] = ()) -> Module:
    run_pipeline(module, [MergeLora(tuple(map(str, paths)), scale)])
    return module


CASES: dict[str, tuple[str, list[dict[str, Any]], tuple[float, ...]]] = {
    "lora": ("llama", [{"r": 4, "lora_alpha": 7, "target_modules": ALL}], ()),
    "share": ("llama", [{"r": 4, "lora_alpha": 7, "target_modules": ALL}], (0.7,)),
    "rslora": ("llama", [{"r": 3, "lora_alpha": 7, "target_modules": ALL, "use_rslora": True}], ()),
    "dora": ("llama", [{"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_dora": True}], ()),
    "flipped": ("gpt2", [{"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "all"}], ()),
    "flipped-dora": ("gpt2", [{"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}], ()),
    "biases": ("gpt2", [{"r": 4, "target_modules": ["c_attn"], "bias": "lora_only"}], ()),
    "low-rank-bias": ("gpt2", [{"r": 4, "target_modules": ["c_attn"], "lora_bias": True}], ()),
    "fused": ("phi3", [{"r": 4, "target_modules": "all-linear"}], ()),
    "patterns": ("qwen2", [{"r": 4, "target_modules": ALL, "use_rslora": True, "rank_pattern": {
        "q_proj": 2, r"layers\.1\.mlp\..*": 6}, "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 32}}], ()),
    "saved": ("llama", [{"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}], ()),
    "embedding": ("llama", [{"r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}], ()),
    "embedding-dora": ("llama", [{"r": 4, "target_modules": ["embed_tokens", "lm_head"], "use_dora": True}], ()),
    "rows": ("llama", [{"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 3]}], ()),
    "some-layers": ("llama", [{"r": 4, "target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*layers\.0.*"}], ()),
    "two": ("llama", [{"r": 4, "target_modules": ALL}, {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"]}], (0.5, -0.3)),
}
"""Model, configurations of the adapters, scales."""


@pytest.mark.parametrize("label", CASES)
def test_weights_are_those_of_peft_bit_for_bit(bases, tmp_path, label):
    name, configs, scale = CASES[label]
    paths = [random_adapter(tmp_path / f"a{i}", i, name, {}, config) for i, config in enumerate(configs)]
    expected = with_adapters(name, {}, paths, scale).merge_and_unload(
        adapter_names=[f"a{i}" for i in range(len(paths))]).state_dict()
    module = ours(bases(name), paths, scale)
    original = bases(name)
    changed = 0
    for key, const in module.consts.items():
        if key not in expected:
            continue
        found = const.weight.materialize()
        np.testing.assert_array_equal(found, expected[key].numpy(), err_msg=key)
        changed += not np.array_equal(found, original.consts[key].weight.materialize())
    assert changed >= 2 if label not in ("some-layers", "rows") else changed


def test_dora_behind_another_adapter(bases, tmp_path):
    """peft takes the first adapter out of the weight again to find its norms, which rounds."""
    configs = [{"r": 4, "target_modules": ALL}, {"r": 2, "target_modules": ["q_proj"], "use_dora": True}]
    paths = [random_adapter(tmp_path / f"a{i}", i, "llama", {}, config) for i, config in enumerate(configs)]
    expected = with_adapters("llama", {}, paths).merge_and_unload(adapter_names=["a0", "a1"]).state_dict()
    for key, const in ours(bases("llama"), paths).consts.items():
        if key in expected:
            np.testing.assert_allclose(const.weight.materialize(), expected[key].numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", [
    {"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens", "lm_head"]},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, {"target_modules": ["lm_head"], "use_dora": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [5, 3]},
], ids=str)
def test_tied_models_compute_what_the_adapter_was_trained_as(bases, tmp_path, config):
    """As peft does beside the base. (What it merges into a tied weight changes both of its users, or changes it twice.)"""
    tied = {"tie_word_embeddings": True}
    path = random_adapter(tmp_path / "a", 0, "llama", tied, {"r": 4, **config})
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = with_adapters("llama", tied, [path])(input_ids=ids).logits
        module = ours(bases("llama", **tied), [path])
        given = {"ids": ids.numpy(), "pos": np.broadcast_to(np.arange(12), (2, 12))}
        found = Executor(module).run([given[p.hint] for p in module.main.params])[0]
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * size)
