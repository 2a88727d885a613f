"""Writing an artifact for the target triton."""

from __future__ import annotations

from pathlib import Path

from ingot.ir.module import Module


def write(module: Module, folder: Path) -> list[tuple[str, str]]:
    """Writes module, weights and kernels into an artifact's folder; the ops left to torch, and why. No GPU is needed."""
    from ingot.backends.triton.module import TritonModule
    from ingot.backends.triton.stored import write_module

    compiled = TritonModule(module, device="cpu")
    write_module(module, folder, compiled.source)
    return compiled.fallbacks


FILES = {"graph": "module.ir", "weights": "weights.safetensors"}
"""The names of an artifact's files, as fields of the manifest."""
