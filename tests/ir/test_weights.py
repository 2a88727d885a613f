"""Weights as handles: nothing is read before it is asked for, files that are broken are refused with a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ingot.errors import CheckpointError, IRError
from ingot.ir.types import TensorType, bf16, bool_, f4e2m1, f8e4m3, f16, f32, i2, i8, i64, u2, u3, u4
from ingot.ir.weights import (
    ArrayWeight,
    DerivedWeight,
    FileWeight,
    UnknownWeight,
    Weight,
    call,
    dense_text,
    derived,
    derived_together,
    header,
)
from ingot.testing import weights


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.randn(3, 4), "b": torch.randn(5).to(torch.bfloat16), "ids": torch.arange(6).reshape(2, 3),
               "mask": torch.tensor([True, False]), "one": torch.tensor(2.5), "none": torch.zeros(0, 4)},
              path, metadata={"format": "pt"})
    return path


def write(path: Path, table: Any, data: bytes = b"\0" * 16) -> Path:
    """A safetensors file with any header."""
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


def test_tensors_read_as_they_were_written(checkpoint: Path) -> None:
    torch.manual_seed(0)
    entries = header(checkpoint)
    assert {k: str(e.type) for k, e in entries.items()} == {
        "a.weight": "f32[3, 4]", "b": "bf16[5]", "ids": "i64[2, 3]", "mask": "bool[2]", "one": "f32[]", "none": "f32[0, 4]"}
    read = {k: FileWeight(checkpoint, k, e.type).materialize() for k, e in entries.items()}
    np.testing.assert_array_equal(read["a.weight"], torch.randn(3, 4).numpy())
    assert read["b"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read["b"].astype(np.float32), torch.randn(5).to(torch.bfloat16).float().numpy())
    assert read["ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read["mask"].tolist() == [True, False]
    assert read["one"] == 2.5
    assert read["none"].shape == (0, 4)


def test_a_file_weight_is_a_view_of_the_file(checkpoint: Path) -> None:
    weight = FileWeight(checkpoint, "a.weight", TensorType(f32, (3, 4)))
    array = weight.materialize()
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert weight.origin == 'safetensors(file="model.safetensors", key="a.weight")'


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    weight = FileWeight(path, "a", TensorType(f32, (2,)))
    for value in (1.0, 2.0):
        new = tmp_path / "new"
        save_file({"a": torch.full((2,), value)}, new)
        new.replace(path)
        assert weight.materialize().tolist() == [value, value]
    save_file({"a": torch.zeros(2, dtype=torch.int32)}, new)  # a header of the same length
    assert new.stat().st_size == path.stat().st_size
    new.replace(path)
    assert str(header(path)["a"].type) == "i32[2]"


def test_a_checkpoint_changed_after_import_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor c is not in this file"):
        FileWeight(checkpoint, "c", TensorType(f32, (3, 4))).materialize()
    with pytest.raises(CheckpointError, match=r"has type f32\[3, 4\] in this file, not f32\[4, 3\]"):
        FileWeight(checkpoint, "a.weight", TensorType(f32, (4, 3))).materialize()


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 20, -1])
def test_truncated_files_are_refused(checkpoint: Path, keep: int) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"the file ends inside its header|truncated: .* ends at byte") as caught:
        header(checkpoint)
    assert caught.value.where == str(checkpoint)
    assert "download it again" in str(caught.value)


TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(("table", "message"), [
    (b"\xff\xfe\x00", "unreadable header"),
    (b"{" * 9, "unreadable header"),
    (b"[" * 100_000, "unreadable header"),
    (b'{"a": ' + b"9" * 5000 + b"}", "unreadable header"),
    ([1, 2], "malformed header"),
    ({"a": 3}, "malformed entry a"),
    ({"a": {"dtype": "F32", "shape": [2, 2]}}, "malformed entry a"),
    ({"a": TENSOR | {"shape": 4}}, "malformed entry a"),
    ({"a": TENSOR | {"shape": [-2, -2]}}, "malformed entry a"),
    ({"a": TENSOR | {"shape": [2.0, 2.0]}}, "malformed entry a"),
    ({"a": TENSOR | {"shape": [float("inf")]}}, "malformed entry a"),
    ({"a": TENSOR | {"shape": [True, 4]}}, "malformed entry a"),
    ({"a": TENSOR | {"data_offsets": [0]}}, "malformed entry a"),
    ({"a": TENSOR | {"data_offsets": [-16, 0]}}, "malformed entry a"),
    ({"a": TENSOR | {"dtype": "F6"}}, "tensor a has element type F6, which is not supported"),
    ({"a": TENSOR | {"dtype": ["F32"]}}, "is not supported"),
    ({"a": TENSOR | {"shape": [2, 3]}}, "the header gives a 16 bytes, its shape needs another number"),
    ({"a": TENSOR | {"data_offsets": [16, 0]}}, "the header gives a -16 bytes"),
    ({"a": TENSOR | {"data_offsets": [8, 24]}}, "truncated: a ends at byte"),
])
def test_broken_headers_are_refused(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        header(write(tmp_path / "m.safetensors", table))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        header(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        header(tmp_path)


@pytest.mark.filterwarnings("ignore:.*maybe elsewhere")  # damaged numbers may be NaN, which is warned of
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_checkpoint_errors_only(data: st.DataObject, tmp_path: Path) -> None:
    """Bytes changed, lost or inserted anywhere: what still reads has the declared shapes, the rest is a CheckpointError."""
    other = {"dtype": "I8", "shape": [4], "data_offsets": [16, 20]}
    head = json.dumps({"__metadata__": {"format": "pt"}, "a": TENSOR, "b": other})
    whole = len(head).to_bytes(8, "little") + head.encode() + bytes(range(20))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        likely = st.sampled_from([b"", b"0", b"9", b"-", b"}", b"[", b'"', b",", b"e", b".", b"\xff"])
        new = data.draw(likely | st.binary(max_size=3))
        whole = whole[:at] + new + whole[at + data.draw(st.integers(0, 2)):]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(whole)
    try:
        for key, entry in header(path).items():
            assert FileWeight(path, key, entry.type).materialize().shape == entry.type.shape
    except CheckpointError as error:
        assert error.where == str(path)  # noqa: PT017


@pytest.mark.parametrize(("type_", "nbytes"), [
    (TensorType(f32, (3, 4)), 48), (TensorType(bf16, (5,)), 10), (TensorType(f8e4m3, (5,)), 5), (TensorType(bool_, (3,)), 3),
    (TensorType(u4, (3, 5)), 9), (TensorType(f4e2m1, (2, 8)), 8), (TensorType(u3, (2, 8)), 6), (TensorType(u3, (2, 3)), 4),
    (TensorType(u2, (7,)), 2), (TensorType(i2, (2, 2, 4)), 4), (TensorType(i64, ()), 8), (TensorType(f32, (0, 4)), 0),
])
def test_bytes_of_packed_tensors(type_: TensorType, nbytes: int) -> None:
    """Rows of codes narrower than a byte start on whole bytes."""
    assert UnknownWeight(type_, "memory()").nbytes == nbytes


def test_an_array_may_hold_a_narrower_type() -> None:
    codes = ArrayWeight(np.array([[1, 7, 0]], np.uint8), dtype=u3)
    assert codes.type == TensorType(u3, (1, 3))
    assert codes.nbytes == 2
    with pytest.raises(IRError, match="u3 is held as uint8, the array is int64"):
        _ = ArrayWeight(np.zeros(2, np.int64), dtype=u3).type


def test_large_arrays_are_not_written_out() -> None:
    assert ArrayWeight(np.zeros(65, np.float32)).origin == "memory()"
    assert ArrayWeight(np.zeros(64, np.float32)).origin.startswith("dense([0.0, ")
    assert ArrayWeight(np.zeros(64), source="buffer()").origin == "buffer()"


@pytest.mark.parametrize(("array", "text"), [
    (np.array([0.1, -0.0, np.inf], np.float32), "[0.1, -0.0, inf]"),
    (np.array([0.1], np.float64), "[0.1]"),
    (np.array(0.1, ml_dtypes.bfloat16), "0.1"),
    (np.array([[1, 2], [3, 4]], ml_dtypes.int4), "[[1, 2], [3, 4]]"),
    (np.array([True, False]), "[true, false]"),
    (np.array(1 / 3, np.float32), "0.33333334"),
    (np.zeros((2, 0), np.int64), "[[], []]"),
])
def test_dense_text_is_the_shortest_that_reads_back(array: np.ndarray, text: str) -> None:
    assert dense_text(array) == text


def test_derived_weights_are_computed_when_asked_for() -> None:
    asked: list[str] = []

    class Source(Weight):
        type = TensorType(f32, (2,))
        origin = "source()"

        def materialize(self) -> np.ndarray:
            asked.append("source")
            return np.array([1.0, 2.0], np.float32)

    double = derived("scale", lambda a: a * 2, Source(), type=TensorType(f32, (2,)), key="w")
    assert asked == []
    assert double.origin == 'computed(pass="scale", key="w")'
    assert double.materialize().tolist() == [2.0, 4.0]
    assert asked == ["source"]


@pytest.mark.parametrize("type_", [TensorType(f32, (3,)), TensorType(f16, (2,))])
def test_a_derived_weight_must_be_what_it_declares(type_: TensorType) -> None:
    weight = DerivedWeight(type_, lambda: np.zeros(2, np.float32), (), "made()")
    with pytest.raises(IRError, match=r"made\(\) made float32\[2\], declared"):
        weight.materialize()


def test_exact_derivations_are_not_rounded_in_between() -> None:
    third = ArrayWeight(np.array([1.0], np.float32))
    weight = derived("fold", lambda a: a / 3, third, type=TensorType(bf16, (1,)), key="w", exact=True)
    assert weight.wide()[0] == 1 / 3
    assert weight.wide().dtype == np.float64
    assert weight.materialize().dtype == ml_dtypes.bfloat16
    rounded = derived("round", lambda a: a.astype(ml_dtypes.bfloat16), third, type=TensorType(bf16, (1,)), key="w")
    assert rounded.wide()[0] == 1.0


def test_parts_computed_together_come_from_one_computation() -> None:
    runs: list[int] = []

    def split(a: np.ndarray) -> tuple[np.ndarray, ...]:
        runs.append(1)
        return a[:1], a[1:]

    types = {"low": TensorType(f32, (1,)), "high": TensorType(f32, (2,))}
    parts = derived_together("split", split, ArrayWeight(np.arange(3, dtype=np.float32)), types=types, key="w")
    assert parts["high"].origin == 'computed(pass="split", key="w.high")'
    assert parts["high"].materialize().tolist() == [1.0, 2.0]
    assert parts["low"].materialize().tolist() == [0.0]
    assert len(runs) == 1
    assert parts["low"].materialize().tolist() == [0.0]


def test_weights_of_a_dump_have_no_numbers() -> None:
    with pytest.raises(IRError, match=r"the numbers of memory\(\) are not in the dump"):
        UnknownWeight(TensorType(i8, (2,)), "memory()").materialize()


def test_origins_quote_their_fields() -> None:
    assert call("made", name='a"b', n=1, x=None, parts=["p", 2]) == 'made(name="a\\"b", n=1, parts=["p", 2])'


@given(weights())
def test_random_weights_keep_their_word(weight: ArrayWeight) -> None:
    array = weight.materialize()
    assert TensorType(weight.type.dtype, array.shape) == weight.type
    assert np.abs(array.astype(np.float64)).max(initial=0) <= 2
