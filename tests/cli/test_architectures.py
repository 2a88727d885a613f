"""Every architecture, from a checkpoint on disk to an artifact that runs, against transformers in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ingot
from ingot.errors import PassError
from ingot.runtime.session import Session
from tests.frontend.models import DECODERS, ENCODERS, VISION, VOCAB, saved, tiny

CLOSE = {"rtol": 0, "atol": 2e-5}
NOISE = 0.06
"""Relative noise of quantised recipes on random weights. onnxruntime's 4-bit kernel alone makes 0.023 of it (activations in
8 bits), per-row 8-bit products 0.035, the 8-bit cache 0.03; a wrong scale or position makes 0.3 and more."""


@pytest.fixture(autouse=True)
def _quiet_torch() -> None:
    torch.set_num_threads(1)


def logits_of(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return out


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str, tmp_path: Path) -> None:
    _, model = tiny(name)
    ingot.compile(saved(model, tmp_path / "model"), tmp_path / "out", recipe="fp32")
    session = Session.open(tmp_path / "out", threads=1)
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 20))
    expected = logits_of(model, ids)
    np.testing.assert_allclose(session.logits(ids), expected, **CLOSE)
    lengths = np.array([5, 9])
    prompt = session.prefill([row[:n] for row, n in zip(ids, lengths, strict=True)], chunk=4)
    np.testing.assert_allclose(prompt, expected[[0, 1], lengths - 1], **CLOSE)
    for step in range(8):
        at = lengths + step
        np.testing.assert_allclose(session.step(ids[[0, 1], at]), expected[[0, 1], at], **CLOSE)
    alone = session.prefill([ids[1, :9]])
    np.testing.assert_allclose(alone[0], prompt[1], **CLOSE)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str, tmp_path: Path) -> None:
    _, model = tiny(name)
    ingot.compile(saved(model, tmp_path / "model"), tmp_path / "out", recipe="fp32")
    session = Session.open(tmp_path / "out", threads=1)
    ids = np.random.default_rng(0).integers(3, VOCAB, (2, 20))
    mask = np.ones_like(ids)
    mask[1, 13:] = 0
    given = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
    got = session.run({p.name: given[p.name] for p in session.manifest.inputs})["hidden"]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(got[mask == 1], expected[mask == 1], **CLOSE)


@pytest.mark.parametrize("name", VISION)
def test_vision(name: str, tmp_path: Path) -> None:
    _, model = tiny(name)
    ingot.compile(saved(model, tmp_path / "model"), tmp_path / "out", recipe="fp32")
    session = Session.open(tmp_path / "out", threads=1)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    np.testing.assert_allclose(session.run({"pixels": pixels})["logits"], expected, **CLOSE)


def test_an_encoder_is_refused_a_cache(tmp_path: Path) -> None:
    _, model = tiny("bert")
    with pytest.raises(PassError, match="not a causal decoder: attention"):
        ingot.compile(saved(model, tmp_path / "model"), tmp_path / "out", passes="canonicalize,recognize,insert-kv-cache")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["cpu-int4", "cpu-int4-small", "cpu-int8"])
def test_quantised_recipes_decode_like_their_own_graph(recipe: str, tmp_path: Path) -> None:
    """The artifact's kernels against the torch executor on the same quantised graph without a cache."""
    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.passes.base import Context
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.recipes import DECODE_INT8
    from ingot.passes.recipes import recipe as recipe_text

    _, model = tiny("llama", hidden_size=128, intermediate_size=256, head_dim=32)
    checkpoint = saved(model, tmp_path / "model")
    chunks = np.random.default_rng(1).integers(3, VOCAB, (16, 32))  # of few tokens, the peaks of keys would be too low
    np.savez(tmp_path / "calib.npz", text=chunks)
    ingot.compile(checkpoint, tmp_path / "out", recipe=recipe, calib=tmp_path / "calib.npz")
    session = Session.open(tmp_path / "out", threads=1)
    module = load(checkpoint)
    run_pipeline(module, parse_pipeline(recipe_text(recipe).replace(f"{DECODE_INT8},", "")), Context(calibration=chunks[:, None]))
    ids = np.random.default_rng(0).integers(3, VOCAB, (1, 24))
    expected = Executor(module).run({"ids": ids, "pos": np.arange(24)[None]})[0].numpy()[0]
    assert noise(session.logits(ids)[0], expected) < NOISE
    for prompt, rows in ((3, 1), (12, 1), (3, 4), (12, 4)):  # with and without the graph for many rows, and its float cache
        session.prefill([ids[0, :prompt]] * rows)
        steps = np.stack([session.step(np.repeat(ids[:, i], rows)).copy() for i in range(prompt, 24)], axis=1)
        assert noise(steps, np.stack([expected[prompt:]] * rows)) < NOISE


def noise(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square difference over root mean square: what 8-bit activations and caches may cost."""
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
