"""Exported checkpoints loaded by transformers with the libraries of their layouts: the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.compiler import load
from ingot.exporting import export_checkpoint
from ingot.fidelity import reference
from tests.frontend.models import saved, tiny

PASSES = "quantize{group=32 lm-head=none}"


def logits(path: Path, ids: np.ndarray, **options: Any) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(ids)).logits.float().numpy()
    return found


def exported(folder: Path, layout: str, passes: str = PASSES) -> Path:
    source = saved(tiny("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=1)[1], folder / "source")
    export_checkpoint(source, folder / layout, passes=passes, layout=layout)
    return folder / layout


def test_floats(tmp_path: Path) -> None:
    """Norms of ones and a rotated stream are an ordinary checkpoint."""
    path = exported(tmp_path, "compressed-tensors", "clean,recognize,clean,rotate")
    ids = np.random.default_rng(0).integers(0, 96, (2, 9))
    np.testing.assert_allclose(logits(path, ids), reference(load(path))(ids), atol=1e-4)


def test_compressed_tensors(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the library is not installed")
    from transformers import CompressedTensorsConfig

    path = exported(tmp_path, "compressed-tensors")
    ids = np.random.default_rng(0).integers(0, 96, (2, 9))
    found = logits(path, ids, quantization_config=CompressedTensorsConfig(dequantize=True))
    np.testing.assert_allclose(found, reference(load(path))(ids), atol=1e-4)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_gptqmodel(tmp_path: Path, layout: str) -> None:
    """Its kernel for the CPU computes the weights in half precision."""
    pytest.importorskip("gptqmodel", reason="the library is not installed")
    path = exported(tmp_path, layout)
    ids = np.random.default_rng(0).integers(0, 96, (2, 9))
    np.testing.assert_allclose(logits(path, ids), reference(load(path))(ids), atol=0.02)
