"""Reading adapter directories: what they hold, by PEFT's rules, and one clear error for everything that is wrong with them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from ingot.errors import CheckpointError
from ingot.passes.lora.adapter import read_adapter
from ingot.passes.lora.adapter_config import AdapterConfig
from tests.passes.adapters import low_rank, write_adapter

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.1.self_attn.v_proj"


def test_factors_and_scales(tmp_path):
    tensors = low_rank({Q: (8, 6), V: (4, 6)})
    adapter = read_adapter(write_adapter(tmp_path / "a", tensors))
    assert adapter.changes.keys() == {Q, V}
    change = adapter.changes[Q]
    assert (change.rank, change.shape, change.table) == (4, (8, 6), False)
    assert change.scaling() == 2.0
    assert change.scaling(0.25) == 0.5
    np.testing.assert_array_equal(change.a.materialize(), tensors[f"{Q}.lora_A.weight"])
    rooted = read_adapter(write_adapter(tmp_path / "rs", tensors, use_rslora=True, lora_alpha=7))
    assert rooted.changes[V].scaling() == 7 / math.sqrt(4)


def test_patterns_set_rank_and_alpha_of_some_modules(tmp_path):
    """The first pattern that fits the end of the name counts, as a regular expression."""
    tensors = low_rank({Q: (8, 6)}, rank=2) | low_rank({V: (4, 6)}, rank=3)
    patterns = {r"layers\.\d+\.self_attn\.q_proj": 2, "^model.layers.1.self_attn.v_proj": 3, "v_proj": 5, "proj": 9}
    adapter = read_adapter(write_adapter(tmp_path, tensors, rank_pattern=patterns, alpha_pattern={"q_proj": 6, "pro": 1}))
    assert adapter.changes[Q].scaling() == 3.0
    assert adapter.changes[V].scaling() == 8 / 3


def test_what_else_an_adapter_can_bring(tmp_path):
    table = "model.embed_tokens"
    tensors = {f"{table}.lora_embedding_A": np.ones((4, 9)), f"{table}.lora_embedding_B": np.ones((6, 4)),
               f"{table}.base_layer.weight": np.ones((9, 6)), "lm_head.weight": np.zeros((9, 6)),
               "score.modules_to_save.weight": np.zeros((2, 6)), f"{Q}.base_layer.bias": np.ones(8),
               "model.norm.bias": np.ones(6), f"{Q}.lora_A.weight": np.ones((4, 6)), f"{Q}.lora_B.weight": np.ones((8, 4)),
               f"{Q}.lora_B.bias": np.ones(8), "other.token_adapter.trainable_tokens_delta": np.ones((2, 6))}
    found = read_adapter(write_adapter(tmp_path, {k: v.astype(np.float32) for k, v in tensors.items()},
                                       trainable_token_indices={"other": [5, 3]}, lora_bias=True))
    assert found.changes[table].table
    assert found.changes[table].shape == (6, 9)
    assert found.base.keys() == {f"{table}.weight"}
    assert found.values.keys() == {"lm_head.weight", "score.weight", f"{Q}.bias", "model.norm.bias"}
    assert found.rows["other"][1] == (5, 3)
    assert found.changes[Q].bias is not None


def test_magnitudes(tmp_path):
    tensors = low_rank({Q: (8, 6)}) | {f"{Q}.lora_magnitude_vector": np.ones(8, np.float32)}
    change = read_adapter(write_adapter(tmp_path, tensors, use_dora=True)).changes[Q]
    assert change.magnitude is not None
    assert change.magnitude.type.shape == (8,)


TARGETS = [
    ({"target_modules": ["q_proj"]}, Q, True),
    ({"target_modules": ["proj"]}, Q, False),
    ({"target_modules": ["self_attn.q_proj"]}, Q, True),
    ({"target_modules": [Q], "layers_to_transform": [7]}, Q, True),
    ({"target_modules": r".*\.(q|k)_proj"}, Q, True),
    ({"target_modules": "q_proj"}, Q, False),
    ({"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}, Q, False),
    ({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, Q, False),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "blocks"}, Q, False),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]}, Q, True),
    ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}, "lm_head", False),
    ({"target_modules": []}, Q, False),
]
"""A configuration, a module, and whether products are trained for it."""


@pytest.mark.parametrize(("config", "module", "expected"), TARGETS)
def test_targets(config, module, expected):
    assert AdapterConfig(config).targets(module) is expected


@pytest.mark.parametrize(("config", "module", "expected"), TARGETS)
def test_targets_are_those_of_peft(config, module, expected):
    peft = pytest.importorskip("peft", reason="peft is not installed: its rules are not compared")
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    found = check_target_module_exists(peft.LoraConfig(**config), module)
    assert (bool(found) and not isinstance(found, _ExcludedModule)) is expected


GOOD = low_rank({Q: (8, 6), V: (4, 6)})


@pytest.mark.parametrize(("tensors", "config", "message"), [
    ({}, {"peft_type": "IA3"}, "the adapter is of type IA3"),
    ({}, {"peft_type": None}, "the adapter is of type None"),
    ({}, {"init_lora_weights": "pissa_niter_4"}, "base weights that its initialisation, pissa_niter_4, changed"),
    ({}, {"target_parameters": ["experts.down_proj"]}, "it adapts parameters of experts (target_parameters)"),
    ({}, {"alora_invocation_tokens": [1, 2]}, "acts only behind an invocation"),
    ({}, {"use_sparkle": True}, "it sets use_sparkle"),
    ({}, {"rank_pattern": {"(": 2}}, "'(' is no regular expression"),
    ({}, {"target_modules": 3}, "target_modules is 3"),
    ({}, {"r": "4"}, "r is '4'"),
    ({}, {"r": 16}, f"2 modules have another rank than adapter_config.json says: {Q} (a [4, 6], b [8, 4], rank 16)"),
    ({}, {"use_dora": True}, f"use_dora is true, but 2 modules have no magnitude vector: {Q}, {V}"),
    ({f"{Q}.lora_magnitude_vector": np.ones(8)}, {}, f"use_dora is false, but 1 modules have a magnitude vector: {Q}"),
    ({"x.lora_A.weight": np.ones((4, 6))}, {}, "1 modules have only one of the two factors: x"),
    ({"x.lora_A.weight": np.ones((4, 6, 3)), "x.lora_B.weight": np.ones((8, 4, 1))}, {}, "1 modules are no linear or embedding"),
    ({"x.lora_C.weight": np.ones((4, 6))}, {}, "1 tensors are of no known kind: x.lora_C.weight"),
    ({f"{Q}.lora_B.bias": np.ones(3)}, {}, f"1 vectors have another length than their module: {Q} [3]"),
    ({"x.token_adapter.trainable_tokens_delta": np.ones((2, 6))}, {}, "which rows of x are replaced"),
])
def test_what_is_wrong_is_said(tmp_path, tensors, config, message):
    path = write_adapter(tmp_path, GOOD | {k: v.astype(np.float32) for k, v in tensors.items()}, **config)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_adapter(path)
    assert str(tmp_path) in str(caught.value)


def test_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        read_adapter(tmp_path / "none")
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match="it has no adapter_config"):
        read_adapter(tmp_path / "a")
    path = write_adapter(tmp_path / "b", GOOD)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled") as caught:
        read_adapter(path)
    assert "save_pretrained" in str(caught.value.hint)
    (path / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="the adapter is incomplete"):
        read_adapter(path)
    path = write_adapter(tmp_path / "c", GOOD)
    data = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        read_adapter(path)
    (path / "adapter_model.safetensors").write_bytes(data[:40])
    with pytest.raises(CheckpointError, match="ends inside its header"):
        read_adapter(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_adapter(path)


def test_an_adapter_with_nothing_in_it(tmp_path):
    with pytest.raises(CheckpointError, match="it holds no tensors of an adapter"):
        read_adapter(write_adapter(tmp_path, {}))


def test_numbers_that_are_not_finite_are_located(tmp_path):
    broken = {key: array.copy() for key, array in GOOD.items()}
    broken[f"{V}.lora_B.weight"][2, 1] = np.nan
    adapter = read_adapter(write_adapter(tmp_path, broken))
    with pytest.raises(CheckpointError, match=re.escape(f"base_model.model.{V}.lora_B.weight is nan at [2, 1]")):
        adapter.check_finite()


def test_an_adapter_is_no_checkpoint(tmp_path):
    from ingot.frontend.checkpoint import read_checkpoint

    path = write_adapter(tmp_path, GOOD)
    with pytest.raises(CheckpointError, match="needs the model it was trained for") as caught:
        read_checkpoint(path)
    assert "--adapter" in str(caught.value.hint)
