"""All rules of the ONNX backend; importing this registers them, the more special ones last."""

# ruff: noqa: F401

import ingot.backends.onnx.contrib
import ingot.backends.onnx.rules_attention
import ingot.backends.onnx.rules_conv
import ingot.backends.onnx.rules_creation
import ingot.backends.onnx.rules_layout
import ingot.backends.onnx.rules_matmul
import ingot.backends.onnx.rules_norm
import ingot.backends.onnx.rules_pointwise
import ingot.backends.onnx.rules_quant
import ingot.backends.onnx.rules_reduce
