"""Safetensors files written tensor by tensor, read by the library they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ingot.backends.hf.compressed_tensors import reciprocal
from ingot.backends.hf.writer import INDEX, SINGLE, Entry, write_tensors
from ingot.errors import ArtifactError, IRError
from ingot.ir.types import TensorType, dtype_of
from ingot.ir.weights import FileWeight, header


def entry(**arrays: np.ndarray) -> Entry:
    return Entry({key: TensorType(dtype_of(a.dtype), a.shape) for key, a in arrays.items()}, lambda: arrays)


def test_the_library_reads_every_element_type(tmp_path: Path) -> None:
    """Odd sizes of narrow tensors would leave the wider ones unaligned, were they not put first."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 5)).astype(np.float16)
    eight = rng.normal(size=7).astype(ml_dtypes.float8_e4m3fn)
    brain = rng.normal(size=(1, 3)).astype(ml_dtypes.bfloat16)
    words = rng.integers(-9, 9, (2, 3)).astype(np.int32)
    size = write_tensors(tmp_path, [entry(a=eight, b=half), entry(c=brain), entry(d=words, e=np.array([3, 5], np.int64))])
    found = load_file(tmp_path / SINGLE)
    assert size == sum(t.nbytes for t in found.values())
    np.testing.assert_array_equal(found["b"].numpy(), half)
    np.testing.assert_array_equal(found["d"].numpy(), words)
    assert found["e"].tolist() == [3, 5]
    assert torch.equal(found["a"].float(), torch.from_numpy(eight.astype(np.float32)))
    assert torch.equal(found["c"].float(), torch.from_numpy(brain.astype(np.float32)))


def test_shards_come_with_an_index(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full((4, 4), i, np.float32) for i in range(5)}
    write_tensors(tmp_path, [entry(**{key: array}) for key, array in arrays.items()], largest=130)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for key, name in index["weight_map"].items():
        type_ = header(tmp_path / name)[key].type
        np.testing.assert_array_equal(FileWeight(tmp_path / name, key, type_).materialize(), arrays[key])


def test_one_entry_is_computed_at_a_time(tmp_path: Path) -> None:
    made: list[str] = []

    def make(key: str) -> Callable[[], dict[str, np.ndarray]]:
        return lambda: made.append(key) or {key: np.zeros(2, np.float32)}  # type: ignore[func-returns-value]

    seen: list[list[str]] = []
    f32 = dtype_of(np.float32)
    entries = [Entry({key: TensorType(f32, (2,))}, make(key)) for key in "xyz"]
    write_tensors(tmp_path, entries, progress=lambda done, total, what: seen.append([*made]))
    assert seen == [[], ["x"], ["x", "y"]]


def test_numbers_that_are_not_as_declared(tmp_path: Path) -> None:
    with pytest.raises(IRError, match="w was to be f32"):
        write_tensors(tmp_path, [Entry({"w": TensorType(dtype_of(np.float32), (2,))}, lambda: {"w": np.zeros(3, np.float32)})])


def test_the_reciprocal_that_gives_a_scale_back() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(size=2000) * 8).astype(np.float32)
    exact = [np.float32(1) / reciprocal(scale)[0] == scale for scale in scales]
    assert np.mean(exact) > 0.85  # not every number is the reciprocal of another
    near = np.array([np.float32(1) / reciprocal(scale)[0] for scale in scales])
    np.testing.assert_allclose(near, scales, rtol=2 ** -23)
    with pytest.raises(ArtifactError, match="no reciprocal"):
        reciprocal(np.float32(1e-45))
