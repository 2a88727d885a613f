"""lora-inputs: every row computes what its adapter merged would, beside floats, joined and quantised weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from ingot.backends.torch.executor import Executor
from ingot.errors import PassError
from ingot.frontend.load import load
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import i64
from ingot.ir.weights import ArrayWeight
from ingot.passes.contracts.contract import Check
from ingot.passes.lora.lora_inputs import LoraInputs
from ingot.passes.lora.merge_lora import MergeLora
from ingot.passes.pipeline import check_order, parse_pipeline, run_pipeline
from tests.frontend.models import saved, tiny
from tests.passes.adapters import low_rank, write_adapter

SHAPES = {f"model.layers.{i}.{name}": shape for i in (0, 1) for name, shape in {
    "self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}.items()}
NAMES = ["q_proj", "v_proj", "up_proj", "down_proj"]
IDS = np.random.default_rng(0).integers(1, 90, size=(3, 7))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Module:
    return load(saved(tiny("llama", tie_word_embeddings=True)[1], tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters: of the linears; of fewer of them and the tied output projection, with another rank and scale."""
    folder = tmp_path_factory.mktemp("adapters")
    one = write_adapter(folder / "one", low_rank(SHAPES), target_modules=NAMES)
    some = {module: shape for module, shape in SHAPES.items() if "q_proj" in module}
    two = write_adapter(folder / "two", low_rank(some | {"lm_head": (96, 32)}, rank=2, seed=1), r=2, use_rslora=True,
                        target_modules=["q_proj", "lm_head"])
    return one, two


def logits(module: Module, adapter: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    given = {"ids": IDS, "pos": np.broadcast_to(np.arange(7), IDS.shape), "adapter": np.array(adapter)}
    with torch.no_grad():
        return Executor(module).run([given[p.hint] for p in module.main.params])[0].numpy()


@pytest.mark.parametrize("pipeline", ["clean", "clean,recognize,clean,fuse"])
@pytest.mark.filterwarnings("ignore:.*they become two weights")
def test_rows_of_a_batch_with_different_adapters(base, adapters, pipeline):
    plain = copy_module(base)
    run_pipeline(plain, parse_pipeline("clean"))
    expected = [logits(plain)]
    for path in adapters:
        module = copy_module(base)
        run_pipeline(module, [MergeLora((str(path),)), *parse_pipeline("clean")])
        expected.append(logits(module))
    module = copy_module(base)
    run_pipeline(module, parse_pipeline(pipeline))
    without = logits(module)
    run_pipeline(module, [LoraInputs(tuple(map(str, adapters)))])
    assert module.main.params[-1].hint == "adapter"
    assert module.main.params[-1].type.dtype == i64
    found = logits(module, (2, 0, 1))
    for row, number in enumerate((2, 0, 1)):
        np.testing.assert_allclose(found[row], expected[number][row], rtol=1e-5, atol=2e-5)
        assert number == 0 or np.abs(expected[number][row] - expected[0][row]).max() > 0.1
    np.testing.assert_array_equal(logits(module), without)
    text = print_module(module)
    assert print_module(parse_module(text)) == text


@pytest.mark.parametrize("pipeline", ["clean,quantize{format=int4 group=32}",
                                      "clean,recognize,clean,fuse,quantize{format=nf4 group=32}"])
def test_quantised_weights_stay_as_they_are(base, adapters, pipeline):
    """Nothing is coded again: the product is added to what the codes stand for."""
    from ingot.ir.interpret import run

    module = copy_module(base)
    run_pipeline(module, parse_pipeline(pipeline))
    stored = {name: const.weight for name, const in module.consts.items()}
    floats = copy_module(module)
    for op in [op for op in floats.ops if isinstance(op, Linear)]:
        twin = Module("part")
        func = twin.add_func("forward")
        parts = {v: twin.add_const(v.name, v.weight) for v in op.w.op.operands}
        func.set_returns([func.insert(op.w.op.clone(parts)).result])
        array = run(twin, [])[0].astype(np.float32)
        packed = op.w.op.packed.name.removesuffix(".packed")
        floats.main.set_operand(op, "w", floats.add_const(packed, ArrayWeight(array, f'safetensors(key="{packed}")')))
    floats.main.drop_dead()
    run_pipeline(module, [LoraInputs((str(adapters[0]),))])
    assert all(module.consts[name].weight is weight for name, weight in stored.items())
    if "fuse" not in pipeline:  # joined, a weight of floats alone does not tell its parts
        run_pipeline(floats, [MergeLora((str(adapters[0]),))])
        np.testing.assert_allclose(logits(module, (1, 1, 1)), logits(floats), rtol=1e-4, atol=1e-4)
    assert np.abs(logits(module, (1, 1, 1)) - logits(module)).max() > 0.1


def test_what_comes_after(base, adapters):
    """A cache, quantisation and a check; choosing is done once."""
    module = copy_module(base)
    before = parse_pipeline("clean,recognize,clean,fuse")
    after = parse_pipeline("take-logits,insert-kv-cache,quantize{format=int8}")
    receipts = run_pipeline(module, [*before, LoraInputs((str(adapters[0]),)), *after], check=Check())
    stage = next(r for r in receipts if r.stage.startswith("lora-inputs"))
    assert stage.details["difference"]["relative"] > 0
    assert stage.details["linears"] == 6
    assert module.meta["adapters"] == "one"
    with pytest.raises(PassError, match="it has adapters to choose from already"):
        check_order([LoraInputs((str(adapters[1]),))], module)


def test_what_cannot_stay_apart(base, tmp_path):
    q = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.self_attn.q_proj": (32, 32)}
    vectors = {f"{module}.lora_magnitude_vector": np.ones(32, np.float32) for module in q}
    dora = write_adapter(tmp_path / "dora", low_rank(q) | vectors, use_dora=True)
    head = write_adapter(tmp_path / "head", low_rank(q) | {"lm_head.weight": np.zeros((96, 32), np.float32)})
    for path, name in ((dora, "model.layers.0.self_attn.q_proj"), (head, "lm_head.weight")):
        with pytest.raises(PassError, match=f"cannot stay apart from the weights: {name}") as caught:
            check_order([LoraInputs((str(path),))], base)
        assert "merge-lora" in str(caught.value.hint)


def test_linears_that_are_not_recognised_yet(tmp_path):
    shapes = {f"transformer.h.{i}.attn.c_attn": (96, 32) for i in (0, 1)}
    path = write_adapter(tmp_path / "a", low_rank(shapes), target_modules=["c_attn"], fan_in_fan_out=True)
    module = load(saved(tiny("gpt2")[1], tmp_path / "gpt2"))
    with pytest.raises(PassError, match=re.escape("transformer.h.0.attn.c_attn is no linear of this graph")) as caught:
        run_pipeline(module, [LoraInputs((str(path),))])
    assert "recognize" in str(caught.value.hint)
    before = logits(module)
    run_pipeline(module, parse_pipeline(f"clean,recognize,clean,lora-inputs{{adapters={path}}}"))
    assert np.abs(logits(module, (1, 0, 0)) - before).max(axis=(1, 2))[0] > 0.01


def test_names():
    with pytest.raises(PassError, match="two adapters are called a"):
        LoraInputs(("x/a", "y/a"))
    with pytest.raises(PassError, match="no spaces, braces"):
        LoraInputs(("x y",))
