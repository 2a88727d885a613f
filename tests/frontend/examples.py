"""Inputs for imported models by the names of their parameters, and what transformers makes of the same inputs."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from transformers import PreTrainedModel

from ingot.frontend.huggingface import import_model
from ingot.ir.module import Module
from tests.frontend.models import VOCAB, tiny

KEYWORDS = {"ids": "input_ids", "pos": "position_ids", "mask": "attention_mask", "types": "token_type_ids",
            "pixels": "pixel_values"}


@cache
def imported(name: str) -> tuple[Module, PreTrainedModel]:
    """The module of `tiny(name)` and the model itself, made once: look, do not touch."""
    model = tiny(name)[1]
    return import_model(model), model


def inputs_for(module: Module, *, batch: int = 3, length: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for the main func; the second row of a mask ends early."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for param in module.main.params:
        name = str(param.hint)
        if name == "pixels":
            found[name] = random.standard_normal((batch, *param.type.dims[1:])).astype(np.float32)  # type: ignore[arg-type]
            continue
        values = {"ids": random.integers(3, VOCAB, (batch, length)), "types": random.integers(0, 2, (batch, length)),
                  "pos": np.tile(np.arange(length), (batch, 1)), "mask": np.ones((batch, length), np.int64)}
        found[name] = values[name]
    if "mask" in found and batch > 1:
        found["mask"][1, length // 2:] = 0
    return found


def eager(model: PreTrainedModel, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The tensors transformers returns, in the order of the imported module's returns."""
    with torch.no_grad():
        given = {KEYWORDS[name]: torch.tensor(x) for name, x in inputs.items() if name != "pos"}
        if "pixels" in inputs:
            given["pixel_values"] = given["pixel_values"].to(model.dtype)
        found = model(**given)
    if "pos" in inputs:
        return [found.logits.numpy()]
    return [value.numpy() for value in found.values() if isinstance(value, torch.Tensor)]
