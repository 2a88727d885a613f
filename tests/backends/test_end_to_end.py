"""Whole models: transformers, the reference, the torch executor and onnxruntime compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ingot.backends import onnx as onnx_backend
from ingot.backends import torch as torch_backend
from ingot.frontend.huggingface import import_model
from ingot.ir import interpret
from ingot.ir.dims import evaluate
from ingot.ir.module import Module
from ingot.passes import all as _all_passes  # noqa: F401
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.recipes import recipe
from tests.backends.differential import distance
from tests.frontend.models import TABLE, VOCAB, tiny

SIZES = {"B": 3, "S": 7, "T": 16, "N": 2}
CLOSE = 5e-6
"""Of the largest logit: single precision through two layers, against double."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def draw(module: Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name: ids, positions, a mask that hides the end of the last row, caches full of noise."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for param in module.main.params:
        shape = tuple(evaluate(d, SIZES) for d in param.type.dims)
        array = {
            "ids": lambda s: rng.integers(3, VOCAB, s),
            "pos": lambda s: np.broadcast_to(np.arange(s[1]), s),
            "take": lambda s: rng.integers(0, SIZES["S"], s),
            "types": lambda s: rng.integers(0, 2, s),
            "mask": lambda s: np.arange(s[1]) < np.array([[s[1]]] * (s[0] - 1) + [[s[1] - 3]]),
        }.get(param.hint or "", lambda s: rng.normal(size=s))(shape)
        inputs[param.hint or ""] = array.astype(param.type.dtype.numpy)
    return inputs


@pytest.mark.parametrize("name", TABLE)
def test_all_backends_agree_with_transformers(name: str) -> None:
    _, model = tiny(name)
    module = import_model(model, name=name)
    inputs = draw(module)
    names = {"ids": "input_ids", "pos": "position_ids", "mask": "attention_mask", "types": "token_type_ids",
             "pixels": "pixel_values"}
    with torch.no_grad():
        wanted = model(**{names[k]: torch.from_numpy(v) for k, v in inputs.items()}, return_dict=True).to_tuple()[0].numpy()
    exact = interpret.run(module, inputs)[0]
    assert distance(wanted, exact) < CLOSE
    assert distance(torch_backend.run(module, inputs)[0].numpy(), exact) < CLOSE
    assert distance(onnx_backend.run(module, inputs, opset_only=True)[0], exact) < CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "granite"])
def test_backends_agree_on_a_decoder_with_a_cache(name: str) -> None:
    _, model = tiny(name)
    module = import_model(model, name=name)
    run_pipeline(module, parse_pipeline(recipe("fp32")), Context())
    inputs = draw(module)
    # A later chunk of tokens: what lies before it in the cache is seen, what lies behind is not.
    inputs["pos"] = inputs["pos"] + 5
    exact = interpret.run(module, inputs)
    for results in ([t.numpy() for t in torch_backend.run(module, inputs)], onnx_backend.run(module, inputs, opset_only=True)):
        for got, wanted in zip(results, exact, strict=True):
            assert distance(got, wanted) < CLOSE


def test_bf16_is_computed_in_f32_by_onnxruntime() -> None:
    _, model = tiny("llama")
    module = import_model(model.to(torch.bfloat16), name="llama")
    inputs = draw(module)
    exact = interpret.run(module, inputs)[0]
    assert distance(onnx_backend.run(module, inputs, opset_only=True)[0], exact) < CLOSE
    assert distance(torch_backend.run(module, inputs, dtype=torch.float32)[0].numpy(), exact) < CLOSE
    assert 1e-4 < distance(torch_backend.run(module, inputs)[0].numpy(), exact) < 5e-2


def test_greedy_tokens_are_equal() -> None:
    _, model = tiny("llama")
    module = import_model(model, name="llama")
    ids = np.array([[5, 6, 7]])
    mine = {"torch": ids, "ort": ids}
    for _ in range(6):
        for name, tokens in mine.items():
            inputs = {"ids": tokens, "pos": np.arange(tokens.shape[1])[None]}
            run = torch_backend.run if name == "torch" else onnx_backend.run
            logits = np.asarray(run(module, inputs)[0])
            mine[name] = np.concatenate([tokens, logits[:, -1:].argmax(-1)], 1)
    with torch.no_grad():
        wanted = torch.from_numpy(ids)
        for _ in range(6):
            wanted = torch.cat([wanted, model(input_ids=wanted).logits[:, -1:].argmax(-1)], 1)
    assert mine["torch"].tolist() == mine["ort"].tolist() == wanted.tolist()
