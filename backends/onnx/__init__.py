"""Lowering to ONNX: `write` puts model.onnx and its weights into a directory, `run` executes a module with onnxruntime."""

from ingot.backends.onnx.lowering import Lowering, lower
from ingot.backends.onnx.session import run
from ingot.backends.onnx.weights import StoredTensor, WeightFile
from ingot.backends.onnx.writer import Written, write

__all__ = ["Lowering", "StoredTensor", "WeightFile", "Written", "lower", "run", "write"]
