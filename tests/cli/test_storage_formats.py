"""Formats without a kernel: the artifact stays small, says what it costs in memory, runs, and can be exported whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import ingot
from ingot.compiler import export
from ingot.ir.interpret import run as run_reference
from ingot.runtime.manifest import Manifest
from ingot.runtime.session import Session

TEXT = """
module @tiny {
  dim B in 1..8
  const @w : f32[4, 16] = dense(NUMBERS)
  func @forward(%x: f32[B, 16]) -> (f32[B, 4]) {
    %y = linear(%x, @w) : f32[B, 4]
    return %y
  }
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(0).standard_normal((4, 16)).round(2).tolist()
    (tmp_path / "tiny.ir").write_text(TEXT.replace("NUMBERS", str(numbers)))
    return tmp_path / "tiny.ir"


@pytest.mark.parametrize("name", ["nf4", "fp8-e4m3", "nvfp4", "int3"])
def test_weights_are_made_when_the_artifact_is_opened(name: str, source: Path, tmp_path: Path) -> None:
    passes = f"quantize{{format={name}}}"
    if name in ("nf4", "fp8-e4m3"):
        with pytest.warns(UserWarning, match=rf"{name} is a format for storage here.*0\.0 MB in memory"):
            ingot.compile(source, tmp_path / "out", passes=passes)
    else:
        ingot.compile(source, tmp_path / "out", passes=passes)
    module = ingot.load(source)
    ingot.optimize(module, passes)
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    wanted = run_reference(module, [x])[0]
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.graph_weights
    [got] = Session.open(tmp_path / "out").run({"x": x}).values()
    np.testing.assert_allclose(got, wanted, atol=0.02 * np.abs(wanted).max())
    export(tmp_path / "out", tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], got)
