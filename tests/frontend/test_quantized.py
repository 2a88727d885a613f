"""Quantised checkpoints of other tools: what their tensors mean, and one clear error for each that is damaged."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.errors import CheckpointError
from ingot.frontend.checkpoint import SINGLE, read_checkpoint
from ingot.frontend.load import load
from ingot.frontend.quantized.coded import CodedWeight, order_of
from ingot.frontend.quantized.gptq import zero_points
from ingot.frontend.quantized.reader import quantization_settings, weights_of
from ingot.ir.formats.words import pack_words
from ingot.ir.interpret import run
from ingot.ir.ops.layout import Take
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from tests.frontend.examples import inputs_for
from tests.frontend.models import saved, tiny

LINEAR = "model.layers.0.mlp.up_proj"  # [48, 32]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "sym": False, "checkpoint_format": "gptq"}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", num_hidden_layers=1)[1], tmp_path_factory.mktemp("quantised") / "llama")


def quantised(original: Path, folder: Path, settings: dict[str, Any] | None, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a checkpoint with another quantization_config and other tensors."""
    shutil.copytree(original, folder)
    config = json.loads((folder / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in change(load_file(folder / SINGLE)).items()}, folder / SINGLE, {"format": "pt"})
    return folder


def instead(parts: dict[str, np.ndarray | torch.Tensor]) -> Callable[[Tensors], Tensors]:
    """The tensors of a checkpoint with `parts` in the place of one linear's weight."""
    made = {f"{LINEAR}.{k}": v if isinstance(v, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(v))
            for k, v in parts.items()}
    return lambda tensors: {k: v for k, v in tensors.items() if k != f"{LINEAR}.weight"} | made


def gptq_parts(*, order: np.ndarray | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a linear [48, 32] in groups of 16, and what they stand for; g_idx by `order`."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (48, 32)).astype(np.uint8)
    zero, scale = rng.integers(1, 16, (2, 48)).astype(np.uint8), (rng.random((2, 48)) / 20).astype(np.float16)
    g_idx = np.arange(32) // 16 if order is None else (np.arange(32) // 16)[order]
    weight = (codes.astype(np.float32) - zero.T[:, g_idx]) * scale.T.astype(np.float32)[:, g_idx]
    return {"qweight": pack_words(codes, 4).T, "qzeros": pack_words(zero - np.uint8(1), 4), "scales": scale,
            "g_idx": g_idx.astype(np.int32)}, weight


def same_logits(path: Path, original: Path, weight: np.ndarray, tmp_path: Path) -> None:
    """A quantised checkpoint computes what the floats its codes stand for compute."""
    plain = quantised(original, tmp_path / "plain", None, instead({"weight": weight.astype(np.float32)}))
    inputs = inputs_for(module := load(path))
    assert any(isinstance(op, Dequantize) for op in module.ops)
    np.testing.assert_allclose(run(module, inputs)[0], run(load(plain), inputs)[0], atol=1e-5)


# --- what the tensors mean -------------------------------------------------------------------------------------------


def test_gptq_in_order(original: Path, tmp_path: Path) -> None:
    parts, weight = gptq_parts()
    path = quantised(original, tmp_path / "q", GPTQ, instead(parts))
    same_logits(path, original, weight, tmp_path)
    module = load(path)
    assert module.meta["facts"] == "quantized"
    assert f"{LINEAR}.weight" not in module.consts
    packed = module.consts[f"{LINEAR}.weight.packed"]
    assert packed.weight.origin == f'gptq(file="model.safetensors", key="{LINEAR}.weight", part="packed")'
    assert str(packed.type) == "u4[48, 32]"


def test_act_order_puts_the_inputs_in_order(original: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(32)
    parts, weight = gptq_parts(order=order)
    path = quantised(original, tmp_path / "q", GPTQ, instead(parts))
    same_logits(path, original, weight, tmp_path)
    module = load(path)
    (take,) = [op for op in module.ops if isinstance(op, Take)]
    assert all(isinstance(user, Linear) for user in take.result.users)
    assert f"{LINEAR}.weight.ordered.packed" in module.consts  # an adapter for the weight must not find it
    handle = weights_of(read_checkpoint(path))[f"{LINEAR}.weight"]
    np.testing.assert_allclose(handle.materialize(), weight, rtol=1e-6)


def test_older_gptq_checkpoints_have_a_file_of_their_own(original: Path, tmp_path: Path) -> None:
    parts, weight = gptq_parts()
    path = quantised(original, tmp_path / "q", None, instead(parts))
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16, "desc_act": False}))
    settings = quantization_settings(path, {})
    assert settings is not None
    assert settings["quant_method"] == "gptq"
    same_logits(path, original, weight, tmp_path)


def test_a_zero_point_of_zero_borrows_from_its_neighbour() -> None:
    """GPTQModel subtracts whole words when it writes the original format."""
    zero = np.array([[3, 0, 15, 8, 1, 0, 0, 2]], np.uint8)
    stored = (pack_words(zero, 4).view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    np.testing.assert_array_equal(zero_points(stored, bits=4, n=8, less=1), zero.T)


def test_the_order_of_groups() -> None:
    assert order_of(np.array([0, 0, 1, 1]), 2, where="x") is None
    found = order_of(np.array([1, 0, 1, 0]), 2, where="x")
    assert found is not None
    assert found.tolist() == [1, 3, 0, 2]
    with pytest.raises(CheckpointError, match="does not put 2 inputs into each group"):
        order_of(np.array([0, 0, 0, 1]), 2, where="x")


def test_fp8_in_square_blocks(original: Path, tmp_path: Path) -> None:
    """The last blocks of [48, 32] in blocks of 20 x 24 are smaller."""
    torch.manual_seed(0)
    weight, scale = torch.randn(48, 32).to(torch.float8_e4m3fn), torch.rand(3, 2) / 10
    wide = weight.float() * scale.repeat_interleave(20, 0)[:48].repeat_interleave(24, 1)[:, :32]
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [20, 24]}
    path = quantised(original, tmp_path / "q", settings, instead({"weight": weight, "weight_scale_inv": scale}))
    with pytest.warns(UserWarning, match="fp8 asks for quantised activations"):
        module = load(path)
    np.testing.assert_allclose(decoded(path), wide.numpy(), rtol=1e-6)
    assert any(isinstance(op, Dequantize) and op.group == 24 for op in module.ops)


def decoded(path: Path) -> np.ndarray:
    """The float weight of the linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = weights_of(read_checkpoint(path))[f"{LINEAR}.weight"]
    assert isinstance(handle, CodedWeight)
    return handle.materialize()


def compressed(**weights: Any) -> dict[str, Any]:
    given = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | weights
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": given}}}


@pytest.mark.parametrize("shape", [(48, 1), (48,), (1,), ()])
def test_bytes_with_a_scale_per_row_or_for_all(original: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    codes, scale = torch.randint(-128, 128, (48, 32), dtype=torch.int8), torch.rand(shape) / 100
    settings = compressed(strategy="channel" if 48 in shape else "tensor")
    path = quantised(original, tmp_path / "q", settings, instead({"weight": codes, "weight_scale": scale}))
    np.testing.assert_allclose(decoded(path), (codes.float() * scale.reshape(-1, 1)).numpy(), rtol=1e-6)


def test_bytes_with_zero_points(original: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codes, points = (torch.randint(-128, 128, s, dtype=torch.int8) for s in ((48, 32), (48, 1)))
    scale = torch.rand(48, 1) / 100
    path = quantised(original, tmp_path / "q", compressed(symmetric=False),
                     instead({"weight": codes, "weight_scale": scale, "weight_zero_point": points}))
    np.testing.assert_allclose(decoded(path), ((codes.float() - points.float()) * scale).numpy(), rtol=1e-6)


def test_groups_are_found_by_name_and_by_pattern(original: Path, tmp_path: Path) -> None:
    settings = compressed()
    group = settings["config_groups"]["group_0"]
    parts = {"weight": torch.zeros(48, 32, dtype=torch.int8), "weight_scale": torch.ones(48, 1)}
    for i, targets in enumerate(([LINEAR], ["re:.*up_proj"])):
        group["targets"] = targets
        decoded(quantised(original, tmp_path / f"q{i}", settings, instead(parts)))
    group["targets"] = ["re:.*down_proj"]
    with pytest.raises(CheckpointError, match="no group in config_groups is for it"):
        load(quantised(original, tmp_path / "q", settings, instead(parts)))


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_quantised_checkpoint_that_is_not(original: Path, tmp_path: Path) -> None:
    path = quantised(original, tmp_path / "q", GPTQ, lambda tensors: tensors)
    with pytest.warns(UserWarning, match=r"says the weights are quantised \(gptq\), but they are stored as floats"):
        module = load(path)
    assert "facts" not in module.meta
    assert f"{LINEAR}.weight" in module.consts


def test_the_architecture_alone_needs_no_method(original: Path, tmp_path: Path) -> None:
    path = quantised(original, tmp_path / "q", {"quant_method": "zork"}, lambda tensors: tensors)
    assert f"{LINEAR}.weight" in load(path, weights=False).consts


Part = dict[str, np.ndarray]
DAMAGED: dict[str, tuple[dict[str, Any], Callable[[Part], Part], str]] = {
    "unknown method": ({"quant_method": "zork"}, lambda p: p, "quantised by 'zork', which is not supported"),
    "no method": ({"quant_method": None}, lambda p: p, "quantised by None"),
    "wrong bits": ({"bits": 8}, lambda p: p, r"qweight is \[4, 48\], the others ask for \[8, 48\]"),
    "wrong group": ({"group_size": 32}, lambda p: p, r"scales is \[2, 48\], the others ask for \[1, 48\]"),
    "group of nothing": ({"group_size": 0}, lambda p: p, "scales is"),
    "a method's own layout": ({"checkpoint_format": "marlin"}, lambda p: p, "checkpoint_format 'marlin' is not supported"),
    "missing": ({}, lambda p: {k: v for k, v in p.items() if k != "scales"}, "scales is missing"),
    "another type": ({}, lambda p: p | {"scales": p["scales"].astype(np.int32)}, "scales is i32"),
    "cut rows": ({}, lambda p: p | {"qweight": p["qweight"][:3]}, r"qweight is \[3, 48\]"),
    "cut zero points": ({}, lambda p: p | {"qzeros": p["qzeros"][:, :5]}, r"qzeros is \[2, 5\]"),
    "groups mixed up": ({}, lambda p: p | {"g_idx": np.zeros(32, np.int32)}, "does not put 16 inputs into each group"),
    "another shape": ({}, lambda p: p | {"g_idx": p["g_idx"][:16], "qweight": p["qweight"][:2], "scales": p["scales"][:1],
                                         "qzeros": p["qzeros"][:1]}, "config.json and the weights are of different models"),
    "awq elsewhere": ({"quant_method": "awq", "version": "gemv"}, lambda p: p, "AWQ layout gemv"),
    "compressed without groups": ({"quant_method": "compressed-tensors"}, lambda p: p, "config_groups are not understood"),
    "sparse": ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, lambda p: p,
               "sparsity_config is not supported"),
    "blocks of nothing": ({"quant_method": "fp8", "weight_block_size": [0, 1]}, lambda p: p, "weight_block_size"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_told_in_one_sentence(original: Path, tmp_path: Path, case: str) -> None:
    settings, change, message = DAMAGED[case]
    path = quantised(original, tmp_path / "q", GPTQ | settings, instead(change(gptq_parts()[0])))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert caught.value.where or caught.value.hint


def test_calibrated_weights_that_were_not_compressed(original: Path, tmp_path: Path) -> None:
    path = quantised(original, tmp_path / "q", compressed(), instead({"weight": torch.ones(48, 32),
                                                                        "weight_scale": torch.ones(48, 1)}))
    with pytest.raises(CheckpointError, match="calibrated, not compressed"):
        load(path)


def test_settings_that_are_no_object(original: Path, tmp_path: Path) -> None:
    path = quantised(original, tmp_path / "q", None, lambda tensors: tensors)
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": [4]}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"no JSON object|does not read config\.json"):
        load(path)
