"""Prefill in chunks, steps, several tokens at once, rewinding and growing all equal one full forward."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ingot.errors import ArtifactError, GenerateError
from ingot.runtime.artifact import ArtifactWriter
from ingot.runtime.manifest import Manifest, Port
from ingot.runtime.session import Session

CLOSE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order
LENGTHS = (5, 90, 1, 33)


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 320, shape)


@pytest.mark.parametrize("chunk", [1, 7, 32, 512])
def test_prefill_in_chunks_then_steps_equals_one_forward(session: Session, chunk: int) -> None:
    ids = tokens(1, 100)
    full = session.logits(ids)[0]
    np.testing.assert_allclose(session.prefill([ids[0, :70]], chunk=chunk)[0], full[69], **CLOSE)
    for position in range(70, 100):
        np.testing.assert_allclose(session.step(ids[:, position])[0], full[position], **CLOSE)
    assert session.lengths.tolist() == [100]


def test_rows_of_different_lengths_equal_each_row_alone(session: Session) -> None:
    ids = tokens(len(LENGTHS), 120)
    full = session.logits(ids)
    first = session.prefill([row[:length] for row, length in zip(ids, LENGTHS, strict=True)], chunk=16)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(first[row], full[row, length - 1], **CLOSE)
    for step in range(20):
        at = np.array(LENGTHS) + step
        logits = session.step(ids[np.arange(len(LENGTHS)), at])
        np.testing.assert_allclose(logits, full[np.arange(len(LENGTHS)), at], **CLOSE)


def test_forward_of_several_tokens_after_a_past_and_rewind(session: Session) -> None:
    ids = tokens(3, 40)
    full = session.logits(ids)
    starts = [10, 20, 3]
    session.prefill([row[:start] for row, start in zip(ids, starts, strict=True)])
    wrong = session.forward(tokens(3, 4, seed=9))
    assert wrong.shape == (3, 4, 320)
    session.rewind(4)
    draft = np.stack([row[start : start + 5] for row, start in zip(ids, starts, strict=True)])
    for row, logits in enumerate(session.forward(draft)):
        np.testing.assert_allclose(logits, full[row, starts[row] : starts[row] + 5], **CLOSE)
    session.rewind([5, 2, 0])
    assert session.lengths.tolist() == [10, 23, 8]
    logits = session.step([ids[0, 10], ids[1, 23], ids[2, 8]])
    np.testing.assert_allclose(logits, np.stack([full[0, 10], full[1, 23], full[2, 8]]), **CLOSE)


def test_forward_gives_only_the_logits_taken(session: Session) -> None:
    ids = tokens(2, 12)
    full = session.logits(ids)
    session.reset(2)
    some = session.forward(ids, take=[[11, 0], [3, 4]])
    np.testing.assert_allclose(some, np.stack([full[0, [11, 0]], full[1, [3, 4]]]), **CLOSE)


def test_the_cache_grows_and_keeps_its_contents(session: Session) -> None:
    ids = tokens(2, 200)
    full = session.logits(ids)
    session = Session.open(session.path, threads=1)
    session.prefill(list(ids[:, :3]))
    sizes = {session.cache_bytes}
    for position in range(3, 200):
        logits = session.step(ids[:, position]).copy()
        sizes.add(session.cache_bytes)
    np.testing.assert_allclose(logits, full[:, -1], **CLOSE)
    row = 2 * 2 * 2 * 16 * 4 * 2  # layers, k and v, heads, head size, bytes, rows
    assert sizes == {64 * row, 128 * row, 200 * row}


def test_append_continues_rows_where_they_are(session: Session) -> None:
    ids = tokens(2, 60)
    full = session.logits(ids)
    session.prefill([ids[0, :10], ids[1, :30]])
    logits = session.prefill([ids[0, 10:40], ids[1, 30:37]], chunk=8, append=True)
    np.testing.assert_allclose(logits, np.stack([full[0, 39], full[1, 36]]), **CLOSE)


def test_select_keeps_reorders_and_repeats_rows(session: Session) -> None:
    ids = tokens(3, 30)
    full = session.logits(ids)
    session.prefill([row[:length] for row, length in zip(ids, (4, 9, 20), strict=True)])
    session.step(ids[[0, 1, 2], [4, 9, 20]])
    session.select([2, 0, 0])
    logits = session.step([ids[2, 21], ids[0, 5], ids[0, 5]])
    np.testing.assert_allclose(logits, np.stack([full[2, 21], full[0, 5], full[0, 5]]), **CLOSE)


def test_held_rows_do_not_advance(session: Session) -> None:
    ids = tokens(2, 30)
    full = session.logits(ids)
    session.prefill(list(ids[:, :5]))
    session.step([7, ids[1, 5]], hold=np.array([True, False]))
    assert session.lengths.tolist() == [5, 6]
    np.testing.assert_allclose(session.step([ids[0, 5], ids[1, 6]]), np.stack([full[0, 5], full[1, 6]]), **CLOSE)


def test_a_step_allocates_no_buffer(session: Session) -> None:
    session.prefill([tokens(5)])
    first = session.step([1])
    second = session.step([2])
    assert np.shares_memory(first, second)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_into_calls_equals_one_forward(session: Session, data: st.DataObject) -> None:
    ids = tokens(1, 40)
    full = session.logits(ids)[0]
    session.reset(1)
    position = 0
    while position < 40:
        size = data.draw(st.integers(1, 40 - position))
        logits = session.forward(ids[:, position : position + size])[0]
        np.testing.assert_allclose(logits, full[position : position + size], **CLOSE)
        position += size


def test_long_prompts_use_the_prefill_graph(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    """The second graph has other weights here, so that its use shows; it is loaded only when it is needed."""
    other = Session.open(write_toy(tmp_path / "other", seed=1), threads=1)
    path = write_toy(tmp_path / "plain", prefill_graph="model.prefill.onnx", prefill_from=20)
    session = Session.open(path, threads=1)  # model.prefill.onnx is not there yet, and not missed
    short = session.prefill([tokens(19)])
    with pytest.raises(ArtifactError, match="cannot load the graph"):
        session.prefill([tokens(20)])
    model = onnx.load(tmp_path / "other/model.onnx")
    onnx.save(model, path / "model.prefill.onnx", save_as_external_data=True, location="prefill.bin", size_threshold=64)
    np.testing.assert_array_equal(session.prefill([tokens(50)], chunk=16), other.prefill([tokens(50)], chunk=16))
    np.testing.assert_array_equal(session.prefill([tokens(19)]), short)
    np.testing.assert_array_equal(session.logits(tokens(1, 50), prefill=True), other.logits(tokens(1, 50)))


def test_the_prefill_graph_may_have_a_weights_file_made_when_it_is_loaded(
        write_toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pieces come from the artifact's weights, here in another order, and the file is gone afterwards."""
    other = Session.open(write_toy(tmp_path / "other", seed=1), threads=1)
    model = onnx.load(tmp_path / "other/model.onnx", load_external_data=False)
    stored = (tmp_path / "other/weights.bin").read_bytes()
    plan, end = [], 0
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry for entry in tensor.external_data}
            span = [int(entries["offset"].value), int(entries["length"].value)]
            plan.insert(0, {"offset": end, "copy": span})
            entries["location"].value, entries["offset"].value = "prefill.bin", str(end)
            end += -(-span[1] // 4096) * 4096
    path = write_toy(tmp_path / "plain", prefill_graph="model.prefill.onnx", prefill_weights=tuple(plan))
    (path / "model.prefill.onnx").write_bytes(model.SerializeToString())
    session = Session.open(path, threads=1)
    (path / "weights.bin").write_bytes(stored)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    np.testing.assert_array_equal(session.prefill([tokens(30)]), other.prefill([tokens(30)]))
    assert not list(tmp_path.glob("ingot-*"))


@pytest.mark.parametrize(("ask", "message"), [
    (lambda s: s.prefill([np.zeros(201, np.int64)]), r"prompt 0 has 201 tokens, the model's context is 200"),
    (lambda s: s.prefill([[1], []]), "prompt 1 is empty"),
    (lambda s: s.prefill([[1], [320]]), r"prompt 1 has a token id outside 0..319"),
    (lambda s: s.prefill([]), "there is no prompt"),
    (lambda s: s.step([1]), "holds no rows"),
    (lambda s: (s.prefill([[1]]), s.forward([[1], [2]])), "2 rows of ids for 1 rows held"),
    (lambda s: (s.prefill([[1]]), s.forward([1])), r"shape \[batch, tokens\]"),
    (lambda s: (s.prefill([[1]]), s.rewind(2)), "cannot rewind 2"),
    (lambda s: (s.prefill([[1]]), s.select([1])), r"cannot keep the rows \[1\] of 1"),
    (lambda s: (s.prefill([[1]]), s.prefill([[1], [2]], append=True)), "2 prompts cannot continue 1 rows"),
    (lambda s: (s.prefill([np.zeros(150)]), s.prefill([np.zeros(51)], append=True)), "51 tokens after 150 cached"),
    (lambda s: (s.prefill([np.zeros(200)]), s.step([1])), "do not fit the context of 200"),
    (lambda s: s.run({}), "a decoder is run with prefill"),
])
def test_a_request_that_cannot_be_served_is_one_clear_error(
        session: Session, ask: Callable[[Session], object], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        ask(session)


def test_a_failing_operator_is_one_clear_error(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    session.prefill([[1]])
    with pytest.raises(GenerateError, match="ONNX Runtime failed in the graph"):
        session.step([100_000])
    assert capfd.readouterr() == ("", "")  # the error is raised, not also printed by ONNX Runtime


def test_a_damaged_graph_is_one_clear_error(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    path = write_toy(tmp_path / "out")
    file = path / "model.onnx"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ArtifactError, match="cannot load the graph"):
        Session.open(path)


@pytest.mark.parametrize(("old", "new"), [('"kc0_out"', '"kx"'), ('"kc0"', '"kx"'), (" 16\n", " 32\n")])
def test_a_manifest_of_another_graph_is_one_clear_error(
        write_toy: Callable[..., Path], tmp_path: Path, old: str, new: str) -> None:
    file = write_toy(tmp_path / "toy") / "ingot.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ArtifactError, match="the manifest is of another graph"):
        Session.open(tmp_path / "toy")


def test_an_artifact_for_another_target_says_so(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="for the target triton"):
        Session.open(write_toy(tmp_path / "out", target="triton"))


@pytest.fixture
def encoder(tmp_path: Path) -> Session:
    """x f32[B, S] and mask i64[B, S] to x * mask."""
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    nodes = [helper.make_node("Cast", ["mask"], ["m"], to=f32), helper.make_node("Mul", ["x", "m"], ["y"])]
    graph = helper.make_graph(nodes, "encoder", [helper.make_tensor_value_info("x", f32, ["B", "S"]),
                                                 helper.make_tensor_value_info("mask", i64, ["B", "S"])],
                              [helper.make_tensor_value_info("y", f32, ["B", "S"])])
    with ArtifactWriter(tmp_path / "encoder") as writer:
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), writer.path("model.onnx"))
        writer.finish(Manifest(target="ort", kind="encoder", outputs=(Port(name="y", dtype="f32", dims=("B", "S")),), inputs=(
            Port(name="x", dtype="f32", dims=("B", "S")), Port(name="mask", dtype="i64", dims=("B", "S")))))
    return Session.open(tmp_path / "encoder")


def test_an_encoder_runs_once(encoder: Session) -> None:
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    out = encoder.run({"x": x, "mask": [[1, 0, 1], [0, 1, 0]]})
    np.testing.assert_array_equal(out["y"], [[0, 0, 2], [0, 4, 0]])


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": [[1.0]]}, r"the inputs given are \['x'\], the graph takes \['mask', 'x'\]"),
    ({"x": [1.0], "mask": [[1]]}, r"'x' has shape \[1\], the graph takes \['B', 'S'\]"),
    ({"x": [[1.0]], "mask": [[1, 1]]}, r"'mask' has shape \[1, 2\]"),
    ({"x": [[1.0]], "mask": [[1.0]]}, "'mask' is float64, the graph takes i64"),
])
def test_an_encoder_checks_its_inputs(encoder: Session, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(GenerateError, match=message):
        encoder.run(inputs)


def test_only_a_decoder_generates(encoder: Session) -> None:
    with pytest.raises(GenerateError, match="kind encoder"):
        encoder.prefill([[1]])
