"""insert-kv-cache in int8 and int4: what is cached, what it costs, and the same tokens from every executor."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ingot.backends.onnx.lowering import lower
from ingot.backends.onnx.session import run as run_onnx
from ingot.backends.torch.executor import Executor
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.testing import Decoder

PLAN = Decoder(layers=2, width=32, head_dim=16, kv_heads=2, group=2, vocab=16, context=32, positions="rope", rotary_dim=16,
               place="pre", mlp="gated", activation="silu", seed=3)
TEXT = [np.random.default_rng(i).integers(0, 16, (1, 24)) for i in range(3)]
CODINGS = [(dtype, scale) for dtype in ("int8", "int4") for scale in ("channel", "tensor", "token")]


def decoder(dtype: str = "float", scale: str = "channel") -> Module:
    module = PLAN.module()
    run_pipeline(module, parse_pipeline(f"clean,fuse,insert-kv-cache{{dtype={dtype} scale={scale}}},clean"),
                 Context(calibration=TEXT))
    return module


def caches(module: Module, rows: int) -> dict[str, np.ndarray]:
    """Empty ones of 16 positions."""
    sizes = {"B": rows, "T": 16}
    return {p.hint or "": np.zeros([d if isinstance(d, int) else sizes[str(d)] for d in p.type.dims], p.type.dtype.numpy)
            for p in module.main.params if p.hint not in ("ids", "pos")}


def decoded(module: Module, execute: object, *, split: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    """Logits of two rows of seven tokens: five at once, then one by one."""
    ids = np.random.default_rng(9).integers(0, 16, (2, 7))
    pos = np.broadcast_to(np.arange(7), (2, 7))
    state, got, start = caches(module, 2), [], 0
    for stop in split:
        logits, *new = execute(module, {"ids": ids[:, start:stop], "pos": pos[:, start:stop], **state})  # type: ignore[operator]
        state = {name: np.asarray(array).astype(old.dtype) for (name, old), array in zip(state.items(), new, strict=True)}
        got.append(np.asarray(logits))
        start = stop
    return np.concatenate(got, 1)


def reference(module: Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run(module, inputs)


def torch(module: Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [t.numpy() for t in Executor(module).run(inputs)]


def onnx(module: Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run_onnx(module, inputs)


def standard_onnx(module: Module, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run_onnx(module, inputs, opset_only=True)


@pytest.mark.parametrize(("dtype", "scale"), CODINGS)
@pytest.mark.parametrize("execute", [torch, onnx, standard_onnx])
def test_every_executor_decodes_the_same(dtype: str, scale: str, execute: object) -> None:
    module = decoder(dtype, scale)
    expected = decoded(module, reference)
    coding = np.abs(expected - decoded(decoder(), reference)).mean()
    # In float32 a value between two codes may fall to the other one.
    assert np.abs(decoded(module, execute) - expected).mean() < 0.05 * coding


@pytest.mark.parametrize(("dtype", "scale"), CODINGS)
def test_the_cache_holds_codes(dtype: str, scale: str) -> None:
    module = decoder(dtype, scale)
    expected = "i8" if dtype == "int8" else "i4"
    types = {p.hint: str(p.type) for p in module.main.params}
    assert types["kc1"] == f"{expected}[B, 2, T, 16]"
    assert ("kc1.step" in types) == (scale == "token")
    assert print_module(parse_module(print_module(module))) == print_module(module)


@pytest.mark.parametrize("scale", ["channel", "tensor", "token"])
def test_eight_bits_cost_a_fraction_of_what_four_do(scale: str) -> None:
    exact = decoded(decoder(), reference)
    eight, four = (np.abs(decoded(decoder(dtype, scale), reference) - exact).mean() for dtype in ("int8", "int4"))
    assert 0 < eight < four / 6


@pytest.mark.parametrize(("dtype", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_one_kernel_reads_and_writes_the_codes(dtype: str, bits: int, scale: str) -> None:
    graph = lower(decoder(dtype, scale)).model.graph
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    kinds = [{a.name: a for a in node.attribute} for node in nodes]
    assert [k["kv_cache_bit_width"].i for k in kinds] == [bits, bits]
    assert not [node for node in graph.node if node.op_type in ("ScatterND", "ScatterElements", "ReduceSum", "Softmax")]
    cache = next(i for i in graph.input if i.name == "kc0").type.tensor_type
    assert [d.dim_param or d.dim_value for d in cache.shape.dim] == ["B", 2, "T", 16 * bits // 8]


def test_steps_by_token_need_no_calibration_text_and_others_do() -> None:
    module = PLAN.module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pipeline(module, parse_pipeline("insert-kv-cache{dtype=int4 scale=token}"))
    assert [p.requires() for p in parse_pipeline("insert-kv-cache{dtype=int4},insert-kv-cache{scale=token}")] == [
        ("calibration",), ()]


