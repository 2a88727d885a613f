"""The weights file: streamed, aligned, shared, packed as ONNX wants it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ingot.backends.onnx import WeightFile, lower, write
from ingot.backends.onnx.session import open_session
from ingot.backends.onnx.weights import packed
from ingot.backends.onnx.writer import save
from ingot.ir import interpret
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.types import TensorType, bf16, f32, i4, i64, u2, u4
from ingot.ir.weights import ArrayWeight, derived

SIZE = 64


def layers(count: int, made: list[str] | None = None, alive: list[int] | None = None) -> Module:
    """Linears one after the other over weights that record their making."""
    module, rng, live = Module("layers"), np.random.default_rng(0), []
    module.set_dim("B", 1, 8)
    func = module.add_func("forward")
    x = func.add_param("x", TensorType(f32, (sym("B"), SIZE)))
    for i in range(count):
        numbers = rng.normal(size=(SIZE, SIZE)).astype(np.float32) / 8

        def make(numbers: np.ndarray = numbers, name: str = f"w{i}") -> np.ndarray:
            array = numbers.copy()
            if made is not None:
                made.append(name)
            if alive is not None:
                gc.collect()
                live.append(weakref.ref(array))
                alive.append(sum(r() is not None for r in live))
            return array

        w = module.add_const(f"w{i}", derived("test", make, type=TensorType(f32, (SIZE, SIZE)), key=f"w{i}"))
        x = Builder(func)(Linear(x, w))
    func.set_returns((x,))
    return module


def test_each_weight_is_made_once_and_dropped(tmp_path: Path) -> None:
    made: list[str] = []
    alive: list[int] = []
    written = write(layers(5, made, alive), tmp_path)
    assert sorted(made) == [f"w{i}" for i in range(5)]
    assert max(alive) == 1
    assert len(written.tensors) == 5


def test_tensors_lie_where_the_manifest_says(tmp_path: Path) -> None:
    module = layers(3)
    written = write(module, tmp_path, sha256=True)
    data = written.weights.read_bytes()
    model = onnx.load(str(written.model))
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    ends = 0
    for tensor in written.tensors:
        assert tensor.offset % 64 == 0
        assert tensor.offset >= ends
        ends = tensor.offset + tensor.length
        assert data[tensor.offset:ends] == arrays[tensor.name].tobytes()
        assert tensor.sha256 is not None
        assert tensor.name.startswith("w")
    assert ends == len(data)
    assert np.array_equal(arrays["w0.T"], module.consts["w0"].weight.materialize().T)


def test_a_second_graph_shares_the_tensors(tmp_path: Path) -> None:
    made: list[str] = []
    module = layers(3, made)
    with WeightFile(tmp_path / "weights.bin") as weights:
        for name in ("decode.onnx", "prefill.onnx"):
            save(lower(module), tmp_path / name, weights)
    assert len(made) == 3
    x = np.random.default_rng(0).normal(size=(2, SIZE)).astype(np.float32)
    wanted = interpret.run(module, [x])[0]
    for name in ("decode.onnx", "prefill.onnx"):
        assert np.abs(open_session(tmp_path / name).run(None, {"x": x})[0] - wanted).max() < 1e-5


def test_small_tensors_are_stored_inline(tmp_path: Path) -> None:
    module = Module("small")
    func = module.add_func("forward")
    x = func.add_param("x", TensorType(f32, (2, 4)))
    w = module.add_const("w", ArrayWeight(np.eye(4, dtype=np.float32)))
    func.set_returns((Builder(func)(Linear(x, w)),))
    written = write(module, tmp_path)
    assert written.tensors == ()
    assert written.weights.stat().st_size == 0


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    module = Module("tied")
    module.set_dim("S", 1, 8)
    func = module.add_func("forward")
    ids = func.add_param("ids", TensorType(i64, (sym("S"),)))
    w = module.add_const("table", ArrayWeight(np.random.default_rng(0).normal(size=(90, SIZE)).astype(np.float32)))
    b = Builder(func)
    func.set_returns((b(Linear(b(Embedding(ids, w)), w)),))
    written = write(module, tmp_path, opset_only=True)
    assert [t.name for t in written.tensors] == ["table"]


@pytest.mark.parametrize(("dtype", "onnx_type"), [(i4, TensorProto.INT4), (u4, TensorProto.UINT4), (u2, TensorProto.UINT2)])
def test_sub_byte_codes_are_packed_over_the_whole_tensor(dtype: object, onnx_type: int) -> None:
    array = np.random.default_rng(0).integers(-8 if dtype is i4 else 0, 8 if dtype is i4 else 2**dtype.bits, (3, 5))  # type: ignore
    array = array.astype(dtype.numpy)  # type: ignore[attr-defined]
    proto = TensorProto(dims=array.shape, data_type=onnx_type, raw_data=packed(array, dtype).tobytes())  # type: ignore[arg-type]
    assert np.array_equal(numpy_helper.to_array(proto).astype(np.int8), array.astype(np.int8))


def test_bf16_weights_are_widened(tmp_path: Path) -> None:
    module = Module("narrow")
    func = module.add_func("forward")
    x = func.add_param("x", TensorType(bf16, (2, SIZE)))
    numbers = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(ml_dtypes.bfloat16)
    func.set_returns((Builder(func)(Linear(x, module.add_const("w", ArrayWeight(numbers)))),))
    written = write(module, tmp_path)
    assert [str(t.type) for t in written.tensors] == ["f32[64, 64]"]
    assert np.array_equal(np.fromfile(written.weights, np.float32).reshape(SIZE, SIZE), numbers.T.astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_reported(bad: float, tmp_path: Path) -> None:
    module = layers(1)
    array = module.consts["w0"].weight.materialize()
    array[3, 5] = bad
    fresh = Module("bad")
    func = fresh.add_func("forward")
    x = func.add_param("x", TensorType(f32, (2, SIZE)))
    func.set_returns((Builder(func)(Linear(x, fresh.add_const("layers.0.w", ArrayWeight(array)))),))
    told: list[str] = []
    write(fresh, tmp_path, warn=told.append)
    assert told == [f"weight layers.0.w.T has 1 elements that are not finite, the first is {bad} at [5, 3]"]
    with pytest.warns(UserWarning, match="not finite"):
        write(fresh, tmp_path)


def test_progress_counts_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    write(layers(2), tmp_path, progress=lambda *event: seen.append(event))
    assert seen == [(0, 2, "w1.T"), (1, 2, "w0.T")]
