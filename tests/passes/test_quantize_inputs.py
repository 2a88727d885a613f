"""quantize-inputs: what linears on quantised weights read has 255 levels, by token or for good."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.testing import Decoder
from tests.passes.test_rotate import LLAMA

TEXT = [np.random.default_rng(s).integers(0, 24, (2, 16)) for s in range(3)]
QUANTIZE = "quantize{format=int8 group=0 symmetric}"


def decoder() -> Module:
    return Decoder(**LLAMA | {"width": 32, "head_dim": 6, "layers": 2}).module()  # type: ignore[arg-type]


def made(text: str, module: Module | None = None) -> Module:
    module = copy_module(module or decoder())
    run_pipeline(module, parse_pipeline(text), Context(calibration=TEXT))
    return module


def logits(module: Module, ids: np.ndarray) -> np.ndarray:
    return run(module, [ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)])[0]


def read(module: Module, ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What every linear reads, [tokens, k], and the steps it is coded in, [tokens or 1, 1]."""
    values = [op for op in module.main.ops if isinstance(op, Linear)]
    func = module.main
    wanted = list(func.returns)
    func.set_returns([*wanted, *(op.x for op in values), *(op.x.op.y for op in values)])  # type: ignore[union-attr]
    found = run(module, [ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)])[len(wanted):]
    func.set_returns(wanted)
    return [(x.reshape(-1, x.shape[-1]), step.reshape(-1, 1)) for x, step in zip(found, found[len(values):])]


def test_every_token_has_its_own_step() -> None:
    module = made(f"{QUANTIZE},quantize-inputs")
    for x, step in read(module, TEXT[0]):
        codes = x / step
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
        np.testing.assert_allclose(np.abs(codes).max(-1), 127, atol=1e-3)


def test_one_step_for_good_clips_what_the_text_did_not_show() -> None:
    module = made(f"{QUANTIZE},quantize-inputs{{scale=tensor}}")
    assert max(float(np.abs(x / step).max()) for x, step in read(module, TEXT[0])) <= 127.001
    embed = module.consts["embed.packed"] if "embed.packed" in module.consts else module.consts["embed"]
    scale = module.consts.get("embed.scale", embed)
    module.set_weight(scale, ArrayWeight(scale.weight.materialize() * np.float32(4)))
    assert all(np.abs(x / step).max() <= 128.001 for x, step in read(module, TEXT[1]))


def test_is_measured_by_every_executor_alike() -> None:
    from ingot.backends.torch.executor import Executor

    for scale in ("token", "tensor"):
        module = made(f"{QUANTIZE},quantize-inputs{{scale={scale}}}")
        pos = np.broadcast_to(np.arange(16), TEXT[0].shape)
        np.testing.assert_allclose(Executor(module).run([TEXT[0], pos])[0].numpy(), logits(module, TEXT[0]), rtol=0.02, atol=0.02)
        plain = logits(decoder(), TEXT[0])
        assert np.linalg.norm(logits(module, TEXT[0]) - plain) < 0.1 * np.linalg.norm(plain)


def test_needs_quantised_weights_and_runs_once() -> None:
    with pytest.raises(PassError, match="quantize-inputs"):
        made("quantize-inputs")
    with pytest.raises(PassError, match="inputs are quantised already"):
        made(f"{QUANTIZE},quantize-inputs,quantize-inputs")
    with pytest.raises(PassError, match="calibration"):
        run_pipeline(decoder(), parse_pipeline(f"{QUANTIZE},quantize-inputs{{scale=tensor}}"), Context())


def test_composes_with_smooth_and_a_cache() -> None:
    module = made(f"smooth,{QUANTIZE},quantize-inputs{{scale=tensor}},clean,take-logits,insert-kv-cache,clean")
    assert any(p.hint == "kc0" for p in module.main.params)
