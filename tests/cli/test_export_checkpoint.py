"""Checkpoints written and read back: the same codes, the same floats, and one clear error for what cannot be written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from ingot.cli import main
from ingot.compiler import compile, load, optimize
from ingot.errors import ArtifactError, IngotError, PassError
from ingot.exporting import export_checkpoint
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Neg
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const
from ingot.passes.base import Context, Pass
from tests.frontend.models import saved, tiny

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
TRACE = "clean,recognize,clean"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", tie_word_embeddings=True, **SIZES)[1], tmp_path_factory.mktemp("export") / "tied")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama", tie_word_embeddings=False, **SIZES)[1], tmp_path_factory.mktemp("export") / "untied")


def operands(module: Module) -> dict[str, np.ndarray]:
    """The codes, scales and zero points of a module by name; zero points are left out where all are the middle code."""
    out = {}
    for op in module.ops:
        consts = [v for v in op.operands if isinstance(v, Const)] if isinstance(op, Dequantize) else []
        for const in consts:
            array = const.weight.materialize()
            if not (const.name.endswith(".zero") and (array.astype(np.uint8) == 1 << (const.type.dtype.bits - 1)).all()):
                out[const.name] = array
    return out


CASES = [("quantize{group=0 lm-head=none}", "awq"), ("quantize{group=32 symmetric}", "gptq-v2"),
         ("quantize{format=nvfp4 lm-head=int8 skip=*mlp*}", "compressed-tensors")]


@pytest.mark.parametrize(("passes", "layout"), CASES)
def test_codes_come_back_as_they_were(untied: Path, tmp_path: Path, passes: str, layout: str) -> None:
    made = export_checkpoint(untied, tmp_path / "out", passes=passes, layout=layout)
    assert made.difference < 1e-6
    assert not list(tmp_path.glob(".*"))
    module = load(untied)
    optimize(module, passes)
    before, after = operands(module), operands(load(tmp_path / "out"))
    assert before.keys() == after.keys()
    assert made.quantised == sum(name.endswith(".packed") for name in before)
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        if name.endswith(".scale") and "tensors" not in layout:
            array = array.astype(np.float16).astype(np.float32)
        if name.endswith(".tensor_scale"):
            np.testing.assert_allclose(after[name], array, rtol=2 ** -23)
        else:
            np.testing.assert_array_equal(after[name].view(np.uint8), array.view(np.uint8), err_msg=name)


def test_what_was_read_is_written_as_it_was(untied: Path, tmp_path: Path) -> None:
    export_checkpoint(untied, tmp_path / "once", passes="quantize{group=32 lm-head=none}", layout="gptq")
    export_checkpoint(tmp_path / "once", tmp_path / "twice", layout="gptq")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    export_checkpoint(tmp_path / "once", tmp_path / "awq", layout="awq")
    before, after = operands(load(tmp_path / "once")), operands(load(tmp_path / "awq"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name].view(np.uint8), array.view(np.uint8), err_msg=name)


# --- the layouts, one number at a time -------------------------------------------------------------------------------


def quantised(source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], zero points and scales [out, groups] of a linear, quantised here."""
    module = load(source)
    optimize(module, "quantize{group=32 lm-head=none}")
    parts = [module.consts[f"model.layers.0.self_attn.k_proj.weight.{part}"].weight.materialize()
             for part in ("packed", "zero", "scale")]
    return parts[0].astype(int), parts[1].astype(int), parts[2]


def nibble(words: np.ndarray, row: int, column: int, place: int) -> int:
    return (int(words[row, column]) >> 4 * place) & 15


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    prefix = "model.layers.0.self_attn.k_proj."
    return {k.removeprefix(prefix): v for k, v in load_file(path / "model.safetensors").items() if k.startswith(prefix)}


def test_gptq_packs_along_the_inputs(untied: Path, tmp_path: Path) -> None:
    export_checkpoint(untied, tmp_path / "out", passes="quantize{group=32 lm-head=none}", layout="gptq")
    codes, zero, scale = quantised(untied)
    found = tensors_of(tmp_path / "out")
    assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
        "qweight": ((8, 32), "int32"), "qzeros": ((2, 4), "int32"), "scales": ((2, 32), "float16"), "g_idx": ((64,), "int32")}
    for out, into in ((0, 0), (5, 9), (31, 63), (17, 38)):
        assert nibble(found["qweight"], into // 8, out, into % 8) == codes[out, into]
        group = found["g_idx"][into]
        assert group == into // 32
        assert nibble(found["qzeros"], group, out // 8, out % 8) == zero[out, group] - 1
        assert found["scales"][group, out] == scale[out, group].astype(np.float16)
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == settings["checkpoint_format"] == "gptq"
    assert (settings["bits"], settings["group_size"], settings["desc_act"], settings["sym"]) == (4, 32, False, False)


def test_awq_packs_along_the_outputs(untied: Path, tmp_path: Path) -> None:
    export_checkpoint(untied, tmp_path / "out", passes="quantize{group=32 lm-head=none}", layout="awq")
    codes, zero, _ = quantised(untied)
    found = tensors_of(tmp_path / "out")
    place = [0, 4, 1, 5, 2, 6, 3, 7]  # of output 0, 1, ... within its word
    for out, into in ((0, 0), (5, 9), (31, 63), (17, 38)):
        assert nibble(found["qweight"], into, out // 8, place[out % 8]) == codes[out, into]
        assert nibble(found["qzeros"], into // 32, out // 8, place[out % 8]) == zero[out, into // 32]
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert settings == {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
                        "modules_to_not_convert": ["lm_head"]}


def test_compressed_tensors_packs_along_rows(untied: Path, tmp_path: Path) -> None:
    export_checkpoint(untied, tmp_path / "out", passes="quantize{group=32 lm-head=none}")
    codes, zero, scale = quantised(untied)
    found = tensors_of(tmp_path / "out")
    for out, into in ((0, 0), (5, 9), (31, 63), (17, 38)):
        assert nibble(found["weight_packed"], out, into // 8, into % 8) == codes[out, into]
        assert nibble(found["weight_zero_point"], out // 8, into // 32, out % 8) == zero[out, into // 32]
        assert found["weight_scale"][out, into // 32] == scale[out, into // 32]
    assert found["weight_shape"].tolist() == [32, 64]
    settings = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (settings["format"], settings["ignore"]) == ("pack-quantized", ["lm_head"])
    group = settings["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert {k: group["weights"][k] for k in ("num_bits", "type", "symmetric", "strategy", "group_size")} == {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}


# --- floats -----------------------------------------------------------------------------------------------------------


def test_untouched_tensors_are_copied(tied: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for file in tied.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "m/tokenizer.json").write_text("{}")
    export_checkpoint(tmp_path / "m", tmp_path / "out")
    before, after = (load_file(p / "model.safetensors") for p in (tied, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((tied / "config.json").read_text())
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"


def test_floats_in_another_type(tied: Path, tmp_path: Path) -> None:
    made = export_checkpoint(tied, tmp_path / "out", passes=f"{TRACE},rotate{{residual=false}}", dtype="bf16")
    assert made.difference < 1e-5
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    module = load(tmp_path / "out")
    assert all('from="bf16"' in c.weight.origin for name, c in module.consts.items() if name.endswith("proj.weight"))


def test_a_rotated_model_has_norms_of_ones(untied: Path, tmp_path: Path) -> None:
    made = export_checkpoint(untied, tmp_path / "out", passes=f"{TRACE},rotate,quantize{{group=32 symmetric lm-head=none}}",
                             layout="gptq")
    assert made.difference < 1e-5
    stored = load_file(tmp_path / "out/model.safetensors")
    norms = [v for k, v in stored.items() if "norm" in k]
    assert len(norms) == 3
    assert all((v == 1).all() for v in norms)


def test_joined_weights_are_taken_apart(tied: Path, tmp_path: Path) -> None:
    """A group of 32 inputs lies in one row, so that joining rows changes no code."""
    quantize = "quantize{group=32 symmetric lm-head=none}"
    export_checkpoint(tied, tmp_path / "apart", passes=f"{TRACE},{quantize}")
    export_checkpoint(tied, tmp_path / "joined", passes=f"{TRACE},fuse,{quantize}")
    export_checkpoint(tied, tmp_path / "floats", passes=f"{TRACE},fuse")
    for one, other in ((tmp_path / "apart", tmp_path / "joined"), (tied, tmp_path / "floats")):
        a, b = (load_file(p / "model.safetensors") for p in (one, other))
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_an_output_projection_of_its_own(tied: Path, tmp_path: Path) -> None:
    made = export_checkpoint(tied, tmp_path / "out", passes="quantize{group=32 symmetric embedding=false}")
    assert made.quantised == 8
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    keys = load_file(tmp_path / "out/model.safetensors").keys()
    assert {"lm_head.weight_packed", "model.embed_tokens.weight"} <= keys


def test_transposed_weights_are_copied(tmp_path: Path) -> None:
    """GPT-2 stores its linears as [in, out]."""
    source = saved(tiny("gpt2", n_layer=1)[1], tmp_path / "gpt2")
    export_checkpoint(source, tmp_path / "out", passes=TRACE)
    a, b = (load_file(p / "model.safetensors") for p in (source, tmp_path / "out"))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)
    with pytest.raises(ArtifactError, match="the architecture has"):
        export_checkpoint(source, tmp_path / "codes", passes=f"{TRACE},quantize{{lm-head=none}}")


# --- refused ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Negate(Pass):
    """Computes something else with the same weights."""

    name = "negate-for-export"

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        op: Op = next(op for op in func.ops if isinstance(op, Linear))
        negative = Builder(func, before=func.ops[func.ops.index(op) + 1])(Neg(op.result))
        func.replace(op.result, negative)
        return 1


REFUSED = {
    "a quantised table": ("tied", "quantize{group=32}", "compressed-tensors", "token embedding is quantised"),
    "a weight too many": ("tied", f"{TRACE},rotate", "compressed-tensors", "made by rotate"),
    "a cache": ("tied", f"{TRACE},insert-kv-cache", "compressed-tensors", "inputs or outputs"),
    "something else": ("tied", "negate-for-export", "compressed-tensors", "computes something else"),
    "two formats": ("untied", "quantize{group=32 lm-head=int8}", "gptq", "one number of bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written(tied: Path, untied: Path, tmp_path: Path, case: str) -> None:
    which, passes, layout, message = REFUSED[case]
    with pytest.raises(IngotError, match=message) as caught:
        export_checkpoint({"tied": tied, "untied": untied}[which], tmp_path / "out", passes=passes, layout=layout)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_the_zero_point_zero(tmp_path: Path) -> None:
    """A group of positive weights; the original GPTQ format stores zero points less one."""
    model = tiny("llama", **SIZES)[1]
    weight = model.get_submodule("model.layers.0.mlp.up_proj").weight
    weight.data[3, :32] = weight.data[3, :32].abs() + 0.1  # type: ignore[operator, index, union-attr]
    source = saved(model, tmp_path / "m")
    passes = "quantize{group=32 lm-head=none}"
    with pytest.raises(ArtifactError, match="zero point 0"):
        export_checkpoint(source, tmp_path / "out", passes=passes, layout="gptq")
    export_checkpoint(source, tmp_path / "out", passes=passes, layout="gptq-v2")
    assert operands(load(tmp_path / "out"))["model.layers.0.mlp.up_proj.weight.zero"][3, 0] == 0


def test_scales_beyond_half_precision(tmp_path: Path) -> None:
    model = tiny("llama", **SIZES)[1]
    model.get_submodule("model.layers.0.mlp.up_proj").weight.data *= 1e-9  # type: ignore[operator, union-attr]
    source = saved(model, tmp_path / "m")
    with pytest.raises(ArtifactError, match="do not fit f16"):
        export_checkpoint(source, tmp_path / "out", passes="quantize{group=32 symmetric lm-head=none}", layout="gptq")


def test_what_is_no_model_with_a_configuration(untied: Path, tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text("module @m {\n  func @forward(%x: f32[2]) -> (f32[2]) {\n    return %x\n  }\n}\n")
    with pytest.raises(ArtifactError, match="only a model with a configuration"):
        export_checkpoint(tmp_path / "m.ir", tmp_path / "out")
    with pytest.raises(IngotError, match="unknown layout"):
        export_checkpoint(untied, tmp_path / "out", layout="zork")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    with pytest.raises(ArtifactError, match="exists already"):
        export_checkpoint(untied, tmp_path / "taken")
    with pytest.raises(PassError, match="unknown pass"):
        export_checkpoint(untied, tmp_path / "out", passes="zork")


# --- onwards ----------------------------------------------------------------------------------------------------------


def test_a_quantised_checkpoint_compiles(untied: Path, tmp_path: Path) -> None:
    """The codes of a GPTQ checkpoint are those of the artifact."""
    from ingot.fidelity import reference
    from ingot.running import open_session

    export_checkpoint(untied, tmp_path / "gptq", passes="quantize{group=32 lm-head=none}", layout="gptq")
    compile(tmp_path / "gptq", tmp_path / "artifact", recipe="fp32")
    ids = np.random.default_rng(0).integers(0, 96, (1, 9))
    wanted = reference(load(tmp_path / "gptq"))(ids)
    np.testing.assert_allclose(open_session(tmp_path / "artifact").logits(ids), wanted, atol=0.05)
    with pytest.raises(PassError, match="quantised already"):
        compile(tmp_path / "gptq", tmp_path / "again", passes="quantize")


def test_the_command(untied: Path, tmp_path: Path) -> None:
    arguments = ["export", str(untied), "--format", "hf", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--passes", "quantize{group=32 lm-head=none}", "--layout", "awq", "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["quantised"], record["bytes"] > 0, len(record["receipts"])) == (7, True, 1)
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert "exists already" in CliRunner().invoke(main, arguments).stderr
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert "quantization_config" not in (tmp_path / "out/config.json").read_text()
    onnx = CliRunner().invoke(main, ["export", str(untied), "--format", "onnx", "-o", str(tmp_path / "x"), "--layout", "awq"])
    assert onnx.exit_code == 2
