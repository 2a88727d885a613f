"""quantize-inputs: what linears on quantised weights read is one of 255 codes, by token, by block or for good."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.text import parse_module
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


# --- small floats -------------------------------------------------------------------------------------------------------

FP8 = "quantize{format=fp8-e4m3 group=0},quantize-inputs{format=fp8-e4m3}"
MLP = """
module @mlp {
  dim M in 1..64
  const @up : TYPE[96, 64] = memory()
  const @down : TYPE[64, 96] = memory()
  func @forward(%x: TYPE[M, 64]) -> (TYPE[M, 64]) {
    %h = linear(%x, @up) : TYPE[M, 96]
    %a = silu(%h) : TYPE[M, 96]
    %y = linear(%a, @down) : TYPE[M, 64]
    return %y
  }
}
"""


def mlp(pipeline: str, kind: str = "f32") -> Module:
    module = parse_module(MLP.replace("TYPE", kind))
    rng = np.random.default_rng(0)
    for const in module.consts.values():
        const.weight = ArrayWeight((rng.normal(size=const.type.shape) / 8).astype(const.type.dtype.numpy))
    run_pipeline(module, parse_pipeline(pipeline))
    return module


def tokens(rows: int = 6) -> np.ndarray:
    """Tokens of very different size, with an outlier; one is zero."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 64)) * np.exp(3 * rng.normal(size=(rows, 1)))
    x[0] = 0
    x[1, 40] *= 100
    return x.astype(np.float32)


def is_e4m3(codes: np.ndarray) -> np.ndarray:
    """Whether numbers are codes, but for what the division that made them rounded."""
    return np.isclose(codes, codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float64), rtol=1e-5)


def test_small_floats_by_token() -> None:
    for x, step in read(made(FP8), TEXT[0]):
        assert is_e4m3(x / step).all()
        np.testing.assert_allclose(np.abs(x / step).max(-1), 448, rtol=1e-5)


def test_small_floats_beyond_what_the_text_showed_are_clipped() -> None:
    """Never NaN, which is what a cast beyond 448 gives."""
    module = made(f"{FP8[:-1]} scale=tensor}}")
    assert max(float(np.abs(x / step).max()) for x, step in read(module, TEXT[0])) <= 448.001
    step = next(c for name, c in module.consts.items() if "step" in name)
    module.set_weight(step, ArrayWeight(step.weight.materialize() / np.float32(4)))
    greatest = [float(np.abs(x / step).max()) for x, step in read(module, TEXT[1])]
    assert np.isfinite(greatest).all()
    assert max(greatest) <= 448.001
    assert np.isfinite(logits(module, TEXT[1])).all()


@pytest.mark.parametrize("scale", ["token", "tensor"])
def test_small_floats_mean_the_same_to_every_executor(scale: str) -> None:
    """In f64, for where f32 is rounded a code may come out as the next, a sixteenth away."""
    import torch

    from ingot.backends.torch.executor import Executor

    module = made(f"{FP8[:-1]} scale={scale}}}")
    pos = np.broadcast_to(np.arange(16), TEXT[0].shape)
    found = Executor(module, dtype=torch.float64).run([TEXT[0], pos])[0].numpy()
    np.testing.assert_allclose(found, logits(module, TEXT[0]), rtol=1e-9, atol=1e-9)
    plain = logits(decoder(), TEXT[0])
    assert np.linalg.norm(found - plain) < 0.3 * np.linalg.norm(plain)


def in_blocks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MXFP8 by the specification's section 6.3, but for exponents rounded up: decoded [m, k] and scales [m, k / 32]."""
    blocks = x.astype(np.float64).reshape(len(x), -1, 32)
    peak = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-30)
    scale = 2.0 ** np.ceil(np.log2(peak / 448))
    return ((blocks / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale).reshape(x.shape), scale[..., 0]


def test_blocks_of_32_share_a_power_of_two() -> None:
    module = mlp("quantize{format=mxfp4},quantize-inputs{format=mxfp8}")
    func = module.main
    values = [op.x for op in func.ops if isinstance(op, Linear)]
    scales = [x.op.x.op.y for x in values]  # type: ignore[union-attr]
    assert [s.op.x.type.dtype.name for s in scales] == ["f8e8m0", "f8e8m0"]  # type: ignore[union-attr]
    func.set_returns([values[0], scales[0], values[1], values[1].op.x.op.x.op.x, scales[1]])  # type: ignore[union-attr]
    x = tokens()
    back, scale, *inner = run(module, [x])
    wanted, steps = in_blocks(x)
    np.testing.assert_array_equal(back, wanted)
    np.testing.assert_array_equal(scale[..., 0], steps)
    assert scale[1, 1, 0] > scale[1, 0, 0]
    assert np.abs(back - x).max() <= np.abs(x).max() / 28
    h, codes, factor = inner
    assert np.abs(codes.astype(np.float64)).max() <= 448
    np.testing.assert_array_equal((codes.astype(np.float64) * factor).reshape(h.shape), h)


def test_powers_of_two_are_exact_at_their_edges() -> None:
    """448 times a power of two is a code under that power; the next number is one under the next."""
    from ingot.backends.torch.executor import Executor

    module = mlp("quantize{format=mxfp4},quantize-inputs{format=mxfp8}")
    scale = next(op.x.op.x.op.y for op in module.main.ops if isinstance(op, Linear))  # type: ignore[union-attr]
    module.main.set_returns([scale])
    x = np.zeros((6, 64), np.float32)
    x[:, 0] = [448, np.nextafter(np.float32(448), np.float32(449)), 449, 448 * 2.0 ** -30, 1, 447]
    x[:, 32] = -1.75 * 2.0 ** np.arange(0, 60, 10)
    wanted = in_blocks(x)[1]
    wanted[1, 0] = 1  # one unit in the last place beyond 448 is still rounded to it
    for scales in (run(module, [x])[0], Executor(module).run([x])[0].numpy()):
        np.testing.assert_array_equal(scales[..., 0], wanted)


@pytest.mark.parametrize("options", ["format=fp8-e4m3", "format=mxfp8"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "f64"])
def test_small_floats_run_everywhere(options: str, kind: str) -> None:
    """Tokens of zeros and of hardly anything too, in any element type."""
    from ingot.backends.onnx.session import run as run_onnx
    from ingot.backends.torch.executor import Executor

    module = mlp(f"quantize{{format=fp8-e4m3 group=0}},quantize-inputs{{{options}}}", kind)
    x = tokens()
    x[2] *= 1e-6
    x = x.astype(module.main.params[0].type.dtype.numpy).astype(np.float64)
    wanted = run(module, [x])[0]
    plain = run(mlp("clean", kind), [x])[0]
    size = np.abs(plain).max(-1, keepdims=True) + 1e-30
    assert np.abs((wanted - plain) / size)[3:].max() < 0.2
    # What is computed between the linears is rounded, and so may be coded one higher or lower.
    got = {"torch": Executor(module).run([x])[0].double().numpy(), "onnx": run_onnx(module, [x.astype(np.float32)])[0]} \
        if kind != "f64" else {"torch": Executor(module).run([x])[0].numpy()}
    for name, found in got.items():
        assert np.isfinite(found).all(), name
        assert np.abs(found - wanted).max() <= 0.03 * np.abs(wanted).max(), name
        assert not found[0].any(), name


def test_blocks_are_whole_and_dynamic() -> None:
    with pytest.raises(PassError, match=r"%\S+ f32\[B, S, 24\] does not fall into blocks of 32 features"):
        made(f"{QUANTIZE},quantize-inputs{{format=mxfp8}}")
    with pytest.raises(PassError, match="mxfp8 has a step for every 32 features of a token"):
        parse_pipeline("quantize-inputs{format=mxfp8 scale=tensor}")
    with pytest.raises(PassError, match="format must be one of int8, fp8-e4m3, mxfp8"):
        parse_pipeline("quantize-inputs{format=int4}")
