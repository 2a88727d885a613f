"""merge-lora: merged weights against values computed by hand, where adapters do not fit, and how it goes with other passes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from ingot.errors import CheckpointError, PassError
from ingot.frontend.load import load
from ingot.ir.copy import copy_module
from ingot.ir.formats import format_named
from ingot.ir.module import Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.passes.base import Context
from ingot.passes.lora.merge_lora import MergeLora
from ingot.passes.pipeline import check_order, parse_pipeline, run_pipeline
from ingot.passes.quantization import rtn
from tests.frontend.models import saved, tiny
from tests.passes.adapters import low_rank, product, write_adapter

L0, L1 = "model.layers.0", "model.layers.1"
SHAPES = {f"{layer}.{name}": shape for layer in (L0, L1) for name, shape in {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}.items()}
"""[out, in] of every linear of the tiny llama but the output projection."""
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Q = f"{L0}.self_attn.q_proj"
PREPARE = "clean,recognize,clean,fuse"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """loaded(name, **changes): the module of a tiny model; the model is made once."""
    made: dict[tuple[object, ...], Module] = {}

    def get(name: str, **changes: object) -> Module:
        key = (name, *changes.items())
        if key not in made:
            made[key] = load(saved(tiny(name, **changes)[1], tmp_path_factory.mktemp(name)))
        return copy_module(made[key])

    return get


def merged(module: Module, *paths: Path, scale: tuple[float, ...] = ()) -> Context:
    ctx = Context()
    MergeLora(tuple(map(str, paths)), scale).run(module, ctx)
    verify(module)
    return ctx


def numbers(module: Module) -> dict[str, np.ndarray]:
    return {name: const.weight.materialize() for name, const in module.consts.items()}


def q_adapter(path: Path, **config: object) -> tuple[Path, dict[str, np.ndarray]]:
    tensors = low_rank({f"{layer}.self_attn.q_proj": (32, 32) for layer in (L0, L1)})
    return write_adapter(path, tensors, **config), tensors


# --- what becomes of weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "scale"), [({"lora_alpha": 7}, 7 / 4), ({"lora_alpha": 7, "use_rslora": True}, 3.5)])
def test_products_are_added(loaded, tmp_path, config, scale):
    tensors = low_rank(SHAPES)
    path = write_adapter(tmp_path / "a", tensors, target_modules=ALL, **config)
    module = loaded("llama")
    before = numbers(module)
    ctx = merged(module, path)
    after = numbers(module)
    for name in before:
        expected = before[name].astype(np.float64)
        if name.removesuffix(".weight") in SHAPES:
            expected = expected + scale * product(tensors, name.removesuffix(".weight"))
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-6)
        assert after[name].dtype == np.float32
    assert ctx.details["adapters"] == [{"path": str(path), "scale": 1.0, "modules": 14, "ranks": [4], "weights": 14}]
    assert module.consts[f"{Q}.weight"].weight.origin == f'computed(pass="merge-lora", key="{Q}.weight")'


def test_weights_are_not_read_before_they_are_asked_for(loaded, tmp_path, monkeypatch):
    path, _ = q_adapter(tmp_path / "a")
    module = loaded("llama")
    read = []
    from ingot.ir.weights import FileWeight

    plain = FileWeight.materialize
    monkeypatch.setattr(FileWeight, "materialize", lambda self: read.append(self.key) or plain(self))
    merged(module, path)
    assert not read
    module.consts[f"{Q}.weight"].weight.materialize()
    assert f"{Q}.weight" in read


def test_dora_gives_the_rows_of_the_sum_their_norms(loaded, tmp_path):
    path, tensors = q_adapter(tmp_path / "unused")
    rng = np.random.default_rng(3)
    for layer in (L0, L1):
        tensors[f"{layer}.self_attn.q_proj.lora_magnitude_vector"] = rng.uniform(1, 2, 32).astype(np.float32)
    path = write_adapter(tmp_path / "a", tensors, use_dora=True)
    module = loaded("llama")
    total = numbers(module)[f"{Q}.weight"].astype(np.float64) + 2 * product(tensors, Q)
    merged(module, path)
    w = numbers(module)[f"{Q}.weight"]
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), tensors[f"{Q}.lora_magnitude_vector"], rtol=1e-6)
    np.testing.assert_allclose(w / np.linalg.norm(w, axis=1)[:, None], total / np.linalg.norm(total, axis=1)[:, None], atol=1e-6)


@pytest.mark.parametrize("flag", [True, False])
def test_weights_that_lie_flipped(loaded, tmp_path, flag):
    """GPT-2 stores [in, out]; the graph says so, whatever the configuration does, also of square weights."""
    shapes = {"transformer.h.0.attn.c_attn": (96, 32), "transformer.h.0.attn.c_proj": (32, 32),
              "transformer.h.0.mlp.c_proj": (32, 128)}
    tensors = low_rank(shapes)
    path = write_adapter(tmp_path / "a", tensors, target_modules=list(shapes), fan_in_fan_out=flag)
    module = loaded("gpt2")
    before = numbers(module)
    merged(module, path)
    after = numbers(module)
    for name in shapes:
        np.testing.assert_allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * product(tensors, name).T, atol=1e-6)


def test_embedding_and_output_projection(loaded, tmp_path):
    table = "model.embed_tokens"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 96)).astype(np.float32), rng.normal(size=(32, 4)).astype(np.float32)
    head = low_rank({"lm_head": (96, 32)})
    path = write_adapter(tmp_path / "a", head | {f"{table}.lora_embedding_A": a, f"{table}.lora_embedding_B": b},
                         target_modules=["embed_tokens", "lm_head"])
    module = loaded("llama")
    before = numbers(module)
    merged(module, path)
    after = numbers(module)
    np.testing.assert_allclose(after[f"{table}.weight"], before[f"{table}.weight"] + 2 * (b @ a).T, atol=1e-5)
    np.testing.assert_allclose(after["lm_head.weight"], before["lm_head.weight"] + 2 * product(head, "lm_head"), atol=1e-5)


@pytest.mark.parametrize("side", ["table", "head", "both", "together"])
def test_tied_weights_part_where_one_of_them_changes(loaded, tmp_path, side):
    table = "model.embed_tokens"
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 96)).astype(np.float32), rng.normal(size=(32, 4)).astype(np.float32)
    head, tensors = low_rank({"lm_head": (96, 32)}), {}
    if side != "head":
        tensors |= {f"{table}.lora_embedding_A": a, f"{table}.lora_embedding_B": b}
    if side in ("head", "both"):
        tensors |= head
    if side == "together":
        tensors |= {"lm_head.lora_A.weight": b.T, "lm_head.lora_B.weight": a.T}
    path = write_adapter(tmp_path / "a", tensors, target_modules=["embed_tokens", "lm_head"],
                         ensure_weight_tying=side == "together")
    module = loaded("llama", tie_word_embeddings=True)
    base = numbers(module)[f"{table}.weight"]
    if side == "together":
        ctx = merged(module, path)
    else:
        with pytest.warns(UserWarning, match="they become two weights"):
            ctx = merged(module, path)
    assert ctx.details.get("untied", []) == ([] if side == "together" else [f"{table}.weight"])
    looked = next(op.w for op in module.ops if isinstance(op, Embedding))
    projected = module.main.returns[0].op.w
    assert (looked is projected) == (side == "together")
    found = numbers(module)
    np.testing.assert_allclose(found[looked.name], base + (2 * (b @ a).T if side != "head" else 0), atol=1e-5)
    change = {"table": 0, "together": 2 * (b @ a).T}.get(side, 2 * product(head, "lm_head"))
    np.testing.assert_allclose(found[projected.name], base + change, atol=1e-5)
    assert projected.name == {"table": f"{table}.weight.output", "together": f"{table}.weight"}.get(side, "lm_head.weight")


def test_modules_saved_as_a_whole_biases_and_rows(loaded, tmp_path):
    rng = np.random.default_rng(0)
    new = {"model.embed_tokens.base_layer.weight": rng.normal(size=(96, 32)), "lm_head.weight": rng.normal(size=(96, 32)),
           f"{Q}.base_layer.bias": rng.normal(size=32), "model.norm.weight": rng.normal(size=32),
           "model.embed_tokens.token_adapter.trainable_tokens_delta": rng.normal(size=(2, 32))}
    tensors = low_rank({Q: (32, 32), f"{L1}.self_attn.q_proj": (32, 32)}) | {k: v.astype(np.float32) for k, v in new.items()}
    tensors[f"{Q}.lora_B.bias"] = np.ones(32, np.float32)
    path = write_adapter(tmp_path / "a", tensors, trainable_token_indices=[9, 4], modules_to_save=["lm_head", "norm"])
    module = loaded("qwen2")
    merged(module, path)
    found = numbers(module)
    table = tensors["model.embed_tokens.base_layer.weight"].copy()
    table[[9, 4]] = tensors["model.embed_tokens.token_adapter.trainable_tokens_delta"]
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], table)
    np.testing.assert_array_equal(found["lm_head.weight"], tensors["lm_head.weight"])
    np.testing.assert_array_equal(found["model.norm.weight"], tensors["model.norm.weight"])
    np.testing.assert_allclose(found[f"{Q}.bias"], tensors[f"{Q}.base_layer.bias"] + 2, atol=1e-6)


def test_several_adapters_each_with_its_share(loaded, tmp_path):
    one, first = q_adapter(tmp_path / "one")
    second = low_rank({Q: (32, 32), f"{L1}.self_attn.q_proj": (32, 32)}, rank=2, seed=1)
    two = write_adapter(tmp_path / "two", second, r=2, lora_alpha=3)
    module = loaded("llama")
    base = numbers(module)[f"{Q}.weight"]
    run_pipeline(module, parse_pipeline(f"merge-lora{{adapter={one}+{two} scale=0.5+-2}}"))
    expected = base + 0.5 * 2 * product(first, Q) - 2 * 1.5 * product(second, Q)
    np.testing.assert_allclose(numbers(module)[f"{Q}.weight"], expected, atol=1e-6)
    again = loaded("llama")
    run_pipeline(again, parse_pipeline(f"merge-lora{{adapter={one} scale=0.5}},merge-lora{{adapter={two} scale=-2}}"))
    np.testing.assert_array_equal(numbers(again)[f"{Q}.weight"], numbers(module)[f"{Q}.weight"])


def test_narrow_weights_are_added_to_in_32_bits(loaded, tmp_path):
    path, tensors = q_adapter(tmp_path / "a")
    folder = saved(tiny("llama")[1].bfloat16(), tmp_path / "base")
    wide, narrow = load(folder), load(folder, dtype="bf16")
    base = numbers(wide)[f"{Q}.weight"]
    merged(wide, path)
    merged(narrow, path)
    expected = base + np.float32(2) * product(tensors, Q).astype(np.float32)
    np.testing.assert_allclose(numbers(wide)[f"{Q}.weight"], expected, atol=1e-6)
    found = numbers(narrow)[f"{Q}.weight"]
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(found, numbers(wide)[f"{Q}.weight"].astype(found.dtype))


# --- among other passes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shapes"), [
    ("llama", SHAPES),
    ("gpt2", {f"transformer.h.{i}.{n}": s for i in (0, 1) for n, s in
              {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32)}.items()}),
    ("phi3", {f"model.layers.{i}.{n}": s for i in (0, 1) for n, s in
              {"self_attn.qkv_proj": (64, 32), "self_attn.o_proj": (32, 32), "mlp.gate_up_proj": (96, 32)}.items()}),
])
@pytest.mark.parametrize("pipeline", [PREPARE, "rotate,clean"])
def test_before_or_after_passes_that_join_and_turn_weights(loaded, tmp_path, name, shapes, pipeline):
    if name == "gpt2" and "rotate" in pipeline:
        pipeline = f"clean,recognize,{pipeline}"
    path = write_adapter(tmp_path / "a", low_rank(shapes), fan_in_fan_out=name == "gpt2",
                         target_modules=sorted({m.split(".", 3)[-1] for m in shapes}))
    first, last = loaded(name), loaded(name)
    run_pipeline(first, [MergeLora((str(path),)), *parse_pipeline(pipeline)])
    run_pipeline(last, [*parse_pipeline(pipeline), MergeLora((str(path),))])
    one, other = numbers(first), numbers(last)
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=1e-6, atol=1e-6)


def requantised(w: np.ndarray, op: Dequantize) -> np.ndarray:
    return rtn.rounded(w, format_named(op.format), group=op.group, symmetric=op.zero is None).decoded()


def decoded(op: Dequantize) -> np.ndarray:
    parts = iter([v.weight.materialize() for v in op.operands])
    return op.reference(*op.map_operands(lambda _: next(parts)))


@pytest.mark.parametrize(("prepare", "options"), [
    ("clean", "format=int4 group=32"), (PREPARE, "format=int4 group=32"), (PREPARE, "format=int4 symmetric group=16"),
    (PREPARE, "format=nf4"), (PREPARE, "format=fp8-e4m3"), ("clean", "format=mxfp4"), (PREPARE, "format=int8 group=0")])
def test_onto_quantised_weights(loaded, tmp_path, prepare, options):
    """What the codes stand for, plus the product, coded anew; joined weights part by part. The receipt has the error."""
    tensors = low_rank(SHAPES, size=0.1)
    path = write_adapter(tmp_path / "a", tensors, target_modules=ALL)
    module = loaded("llama")
    run_pipeline(module, parse_pipeline(f"{prepare},quantize{{{options}}}"))
    linears = [op for op in module.ops if isinstance(op, Linear)]
    before = [decoded(op.w.op) for op in linears]
    receipt = run_pipeline(module, [MergeLora((str(path),))])[0]
    joined = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
    for old, op in zip(before, linears):
        name = op.w.op.packed.name.removesuffix(".packed").removesuffix(".weight")
        parts = [name.rpartition(".")[0] + f".{part}" for part in joined.get(name.rpartition(".")[2], ())] or [name]
        if name == "lm_head":
            np.testing.assert_array_equal(decoded(op.w.op), old)
            continue
        exact = old + 2 * np.concatenate([product(tensors, part) for part in parts])
        found, want = decoded(op.w.op), requantised(exact.astype(np.float32), op.w.op)
        # A sum that lies between two codes may fall to either side.
        assert np.mean(np.abs(found - want) > 1e-6) < 0.01
        error = np.abs(found - exact)
        noted = receipt.details["requantised"][f"{name}.weight"]
        assert noted["max"] == pytest.approx(error.max() / np.abs(exact).max(), rel=1e-3)
        assert noted["mean"] == pytest.approx(error.mean() / np.abs(exact).mean(), rel=1e-3)
    stated = receipt.details["requantised"].values()
    assert receipt.details["error"] == {"max": max(e["max"] for e in stated),
                                        "mean": pytest.approx(np.mean([e["mean"] for e in stated]))}
    assert receipt.sites == len(linears) - 1


def test_a_second_adapter_onto_quantised_weights(loaded, tmp_path):
    tensors = low_rank(SHAPES, size=0.1)
    path = write_adapter(tmp_path / "a", tensors, target_modules=ALL)
    module = loaded("llama")
    run_pipeline(module, parse_pipeline(f"{PREPARE},quantize{{format=int8 group=32}},merge-lora{{adapter={path}}}"))
    op = next(op.w.op for op in module.ops if isinstance(op, Linear))
    before = decoded(op)
    run_pipeline(module, parse_pipeline(f"merge-lora{{adapter={path} scale=-1}}"))
    rows = decoded(op)[:32] - (before[:32] - 2 * product(tensors, Q))
    assert np.abs(rows).max() < 0.02


def test_tied_quantised_weights_part_as_well(loaded, tmp_path):
    tensors = low_rank({"lm_head": (96, 32)}, size=0.1)
    path = write_adapter(tmp_path / "a", tensors, target_modules=["lm_head"])
    module = loaded("llama", tie_word_embeddings=True)
    run_pipeline(module, parse_pipeline("clean,quantize{format=int8 group=32}"))
    table = next(op for op in module.ops if isinstance(op, Embedding))
    before = decoded(table.w.op)
    with pytest.warns(UserWarning, match="they become two weights"):
        merged(module, path)
    head = module.main.returns[0].op
    np.testing.assert_array_equal(decoded(table.w.op), before)
    assert head.w.op is not table.w.op
    assert head.w.op.packed.name == "lm_head.weight.packed"
    assert np.abs(decoded(head.w.op) - before - 2 * product(tensors, "lm_head")).max() < 0.02


def test_text_alone(loaded, tmp_path):
    """A dump has no numbers; the pass still says which weights it would change."""
    path, _ = q_adapter(tmp_path / "a")
    module = parse_module(print_module(loaded("llama")))
    assert run_pipeline(module, [MergeLora((str(path),))])[0].sites == 2
    text = print_module(module)
    assert text.count('computed(pass="merge-lora"') == 2
    assert print_module(parse_module(text)) == text
    coded = parse_module(print_module(loaded("llama")))
    receipt = run_pipeline(coded, parse_pipeline(f"clean,quantize{{format=int4}},merge-lora{{adapter={path}}}"))[-1]
    assert receipt.sites == 2
    assert "error" not in receipt.details


def test_checked_as_an_edit(loaded, tmp_path):
    """Nothing is promised of the outputs but their types; how far they went is measured."""
    from ingot.passes.contracts.contract import Check

    path, _ = q_adapter(tmp_path / "a")
    receipt = run_pipeline(loaded("llama"), [MergeLora((str(path),))], check=Check())[0]
    assert receipt.details["difference"]["relative"] > 0


# --- what is refused --------------------------------------------------------------------------------------------------------


def test_an_adapter_for_another_base(loaded, tmp_path):
    path, _ = q_adapter(tmp_path / "a", base_model_name_or_path="org/llama")
    module = loaded("gpt2")
    with pytest.raises(PassError, match=f"2 of the 2 parameters it changes are not in this model: {Q}") as caught:
        merged(module, path)
    assert "it was trained on org/llama" in str(caught.value.hint)
    other = loaded("llama", hidden_size=16, num_attention_heads=2)
    before = print_module(other)
    with pytest.raises(PassError, match=re.escape(f"2 parameters have other shapes in this model: {Q}.weight [16, 16] "
                                                  "(the adapter's [32, 32])")):
        merged(other, path)
    assert print_module(other) == before


def test_modules_that_are_missing_or_too_many(loaded, tmp_path):
    path, tensors = q_adapter(tmp_path / "a")
    with pytest.raises(PassError, match=f"1 of the 2 parameters it changes are not in this model: {L1}"):
        merged(loaded("llama", num_hidden_layers=1), path)
    short = write_adapter(tmp_path / "short", {k: v for k, v in tensors.items() if ".0." in k})
    with pytest.raises(PassError, match=f"it lacks 1 modules of this model that it targets: {L1}"):
        merged(loaded("llama"), short)
    merged(loaded("llama"), write_adapter(tmp_path / "on_purpose", {k: v for k, v in tensors.items() if ".0." in k},
                                          layers_to_transform=[0]))


def test_a_resized_embedding(loaded, tmp_path):
    path = write_adapter(tmp_path / "a", {"model.embed_tokens.weight": np.zeros((98, 32), np.float32)}, target_modules=None)
    with pytest.raises(PassError, match=re.escape("model.embed_tokens.weight [96, 32] (the adapter's [98, 32])")):
        merged(loaded("llama"), path)


def test_two_adapters_that_replace_one_module(loaded, tmp_path):
    path = write_adapter(tmp_path / "a", {"lm_head.weight": np.zeros((96, 32), np.float32)}, target_modules=None)
    with pytest.raises(PassError, match="two adapters replace lm_head"):
        merged(loaded("llama"), path, path)


def test_another_name_of_the_base_is_only_worth_a_warning(loaded, tmp_path):
    path, _ = q_adapter(tmp_path / "a", base_model_name_or_path="org/Some-7B")
    module = loaded("llama")
    with pytest.warns(UserWarning, match="trained on org/Some-7B, this model is called llama"):
        merged(module, path)
    same = loaded("llama")
    same.meta["source"] = "some-7b"
    merged(same, path)


def test_broken_adapters_are_refused_before_any_work(loaded, tmp_path):
    path, tensors = q_adapter(tmp_path / "a", peft_type="LOHA")
    with pytest.raises(CheckpointError, match="of type LOHA"):
        check_order(parse_pipeline(f"clean,merge-lora{{adapter={path}}}"), Module())
    tensors[f"{Q}.lora_A.weight"][0, 0] = math.inf
    with pytest.raises(CheckpointError, match=re.escape("lora_A.weight is inf at [0, 0]")):
        merged(loaded("llama"), write_adapter(tmp_path / "b", tensors))


@pytest.mark.parametrize(("text", "message"), [
    ("merge-lora", "needs adapter"), ("merge-lora{adapter=a scale=1+2}", "1 adapters, but 2 scales"),
    ("merge-lora{adapter=a scale=nan}", "finite"), ("merge-lora{adapter=a scale=x}", "takes float"),
    ("merge-lora{adapter=a+}", "no spaces, braces or +")])
def test_options(text, message):
    with pytest.raises(PassError, match=re.escape(message)):
        parse_pipeline(text)


def test_options_print_as_they_are_read():
    text = "merge-lora{adapter=a/b+../c scale=0.5+1.0}"
    assert str(parse_pipeline(text)[0]) == text
