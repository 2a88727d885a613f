"""PEFT directories for tests, written by hand, and models to merge them into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "lora_alpha": 8, "lora_dropout": 0.05, "modules_to_save": None,
    "peft_version": "0.21.2", "r": 4, "target_modules": ["q_proj"], "use_dora": False, "use_rslora": False}


def write_adapter(path: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    """An adapter directory. tensors: by key without `base_model.model.`; config: changes to CONFIG."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file({f"base_model.model.{key}": torch.from_numpy(np.ascontiguousarray(array)) for key, array in tensors.items()},
              path / "adapter_model.safetensors")
    return path


def low_rank(shapes: Mapping[str, tuple[int, int]], rank: int = 4, *, seed: int = 0, size: float = 0.2) -> dict[str, np.ndarray]:
    """Random factors for modules with weights [out, in]."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for module, (out, into) in shapes.items():
        found[f"{module}.lora_A.weight"] = (size * rng.normal(size=(rank, into))).astype(np.float32)
        found[f"{module}.lora_B.weight"] = (size * rng.normal(size=(out, rank))).astype(np.float32)
    return found


def product(tensors: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    """b @ a of a module in float64, [out, in]."""
    return tensors[f"{module}.lora_B.weight"].astype(np.float64) @ tensors[f"{module}.lora_A.weight"].astype(np.float64)
