"""Every layout of quantised weights, written and read: the codes, scales and zero points are the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ingot.backends.hf import LAYOUTS
from ingot.backends.hf.layout import Matrix
from ingot.backends.hf.writer import SINGLE, Entry, write_tensors
from ingot.errors import ArtifactError, CheckpointError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.frontend.quantized.reader import LAYOUTS as READERS
from ingot.ir.formats import FORMATS, Coded
from ingot.ir.types import bf16, f16, f32
from ingot.ir.weights import FileWeight, header
from ingot.passes.quantization.rtn import rounded

INTEGERS = ["int2", "int3", "int4", "int8"]
HELD = {"compressed-tensors": [*INTEGERS, "nvfp4", "mxfp4", "fp8-e4m3"], "gptq": INTEGERS, "gptq-v2": INTEGERS, "awq": ["int4"]}
N, K = 64, 96


def coded(name: str, *, group: int, symmetric: bool) -> Coded:
    w = np.random.default_rng(0).normal(size=(N, K)).astype(np.float32)
    return rounded(w, FORMATS[name], group=group or K, symmetric=symmetric)


def matrix(layout: str, made: Coded) -> Matrix:
    return Matrix("a.b", made.format, (N, K), made.group, "zero" not in made.parts, f32)


def written(folder: Path, layout: str, made: Coded) -> CodedWeight:
    """The weight as a reader finds it in the file a writer made."""
    writer, m = LAYOUTS[layout], matrix(layout, made)
    writer.check(m)
    types = {f"{m.linear}.{part}": type for part, type in writer.types(m).items()}
    write_tensors(folder, [Entry(types, lambda: {f"{m.linear}.{k}": v for k, v in writer.tensors(m, made.parts).items()})])
    tensors = {key: FileWeight(folder / SINGLE, key, entry.type) for key, entry in header(folder / SINGLE).items()}
    settings = writer.settings([m], ["lm_head"])
    reader = READERS[settings["quant_method"]](settings)
    assert list(reader.linears(tensors)) == ["a.b"]
    return reader.read("a.b", {key.removeprefix("a.b."): tensor for key, tensor in tensors.items()})


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout, names in HELD.items() for name in names])
@pytest.mark.parametrize("group", [32, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_numbers_come_back(tmp_path: Path, layout: str, name: str, group: int, symmetric: bool) -> None:
    fmt = FORMATS[name]
    made = coded(name, group=group if group in fmt.groups else fmt.group, symmetric=symmetric)
    if layout == "gptq" and "zero" in made.parts and not made.parts["zero"].astype(int).all():
        pytest.skip("the original GPTQ format does not hold the zero point 0")
    found = written(tmp_path, layout, made)
    assert (found.key, found.format, found.group, found.order) == ("a.b.weight", name, made.group, None)
    assert {part: str(w.type) for part, w in found.parts.items()} == {
        part: str(t) for part, t in fmt.types((N, K), made.group, symmetric="zero" not in made.parts).items()}
    for part, array in made.parts.items():
        if part == "scale" and layout != "compressed-tensors":
            array = array.astype(np.float16).astype(np.float32)
        if part == "tensor_scale":
            np.testing.assert_allclose(found.parts[part].materialize(), array, rtol=2 ** -23)
        else:
            np.testing.assert_array_equal(found.parts[part].materialize().view(np.uint8), array.view(np.uint8), err_msg=part)
    np.testing.assert_allclose(found.materialize(), made.decoded(), rtol=1e-3)


def test_scales_of_compressed_tensors_have_the_models_type() -> None:
    made = coded("int4", group=32, symmetric=True)
    for dtype in (bf16, f16):
        m = Matrix("a", made.format, (N, K), 32, True, dtype)
        assert LAYOUTS["compressed-tensors"].tensors(m, made.parts)["weight_scale"].dtype == dtype.numpy


@pytest.mark.parametrize("layout", ["compressed-tensors", "awq"])
def test_groups_are_whole(layout: str) -> None:
    with pytest.raises(ArtifactError, match="whole groups"):
        LAYOUTS[layout].check(Matrix("a", FORMATS["int4"], (N, K), 64, True, f32))


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout, names in HELD.items() for name in FORMATS
                                              if name not in names])
def test_formats_that_a_layout_does_not_hold(layout: str, name: str) -> None:
    with pytest.raises(ArtifactError, match="hold") as caught:
        LAYOUTS[layout].check(Matrix("a", FORMATS[name], (N, K), 32, True, f32))
    assert caught.value.hint


def test_gptq_holds_a_shorter_last_group(tmp_path: Path) -> None:
    made = coded("int4", group=64, symmetric=True)
    found = written(tmp_path, "gptq", made)
    np.testing.assert_array_equal(found.parts["packed"].materialize(), made.codes)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_one_setting_covers_all_weights(layout: str) -> None:
    matrices = [Matrix(name, FORMATS["int4"], (N, K), group, True, f32) for name, group in (("a", 32), ("b", 96))]
    with pytest.raises(ArtifactError, match="one number of bits and one group size"):
        LAYOUTS[layout].settings(matrices, [])


def test_wrong_bits_are_told(tmp_path: Path) -> None:
    made = coded("int4", group=32, symmetric=True)
    written(tmp_path, "gptq", made)
    tensors = {key.removeprefix("a.b."): FileWeight(tmp_path / SINGLE, key, entry.type)
               for key, entry in header(tmp_path / SINGLE).items()}
    for changes, message in (({"bits": 8}, r"a.b.qweight is \[12, 64\], the others ask for \[24, 64\]"),
                             ({"group_size": 16}, r"a.b.scales is \[3, 64\]"), ({"bits": 5}, "bits is 5"),
                             ({"bits": "4"}, "bits is '4'"), ({"checkpoint_format": "marlin"}, "'marlin' is not supported"),
                             ({"pack_dtype": "int16"}, "pack_dtype")):
        settings = LAYOUTS["gptq"].settings([matrix("gptq", made)], []) | changes
        with pytest.raises(CheckpointError, match=message):
            READERS["gptq"](settings).read("a.b", tensors)
