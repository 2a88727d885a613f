"""Writing an artifact for the target triton."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from ingot.ir.module import Module

Step = Callable[[int, int, str], None]


def write(module: Module, folder: Path, *, archs: Sequence[str] = (), progress: Step | None = None) -> list[tuple[str, str]]:
    """Writes module, weights and kernels into an artifact's folder; the ops left to torch, and why. No GPU is needed.

    archs: architectures (`sm_90`) for which kernels are compiled now instead of at the first run.
    """
    from ingot.backends.triton.module import TritonModule
    from ingot.backends.triton.paging import PAGE
    from ingot.backends.triton.prebuild import prebuild
    from ingot.backends.triton.stored import write_module

    compiled = TritonModule(module, device="meta", page=PAGE)
    write_module(module, folder, compiled.source)
    if archs:
        step = progress or (lambda done, total, what: None)
        failed = prebuild(module, archs, folder, processes=os.cpu_count() or 1,
                          progress=lambda done, total: step(done, total, "kernels"))
        if failed:
            warnings.warn(f"{len(failed)} kernels were not compiled, the first because: {failed[0]}", stacklevel=2)
    return compiled.fallbacks


FILES = {"graph": "module.ir", "weights": "weights.safetensors"}
"""The names of an artifact's files, as fields of the manifest."""
