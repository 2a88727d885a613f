"""Hugging Face checkpoint directories: safetensors under the names transformers gives them, and layouts of quantised weights."""

from __future__ import annotations

from collections.abc import Mapping

from ingot.backends.hf.awq import Awq
from ingot.backends.hf.compressed_tensors import CompressedTensors
from ingot.backends.hf.gptq import Gptq, GptqV2
from ingot.backends.hf.layout import Layout

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (CompressedTensors(), Gptq(), GptqV2(), Awq())}
"""How quantised weights may be stored, by name."""

__all__ = ["LAYOUTS", "Layout"]
