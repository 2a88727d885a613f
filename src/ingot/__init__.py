"""ingot: compile trained models into smaller, faster ones.

    import ingot
    module = ingot.load("path/to/checkpoint")
    ingot.optimize(module, "canonicalize,recognize,fuse")
    ingot.compile("path/to/checkpoint", "out", recipe="cpu-int4")
    print(ingot.generate("out", "Why is the sky blue?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError

if TYPE_CHECKING:
    from ingot.bisection import bisect
    from ingot.changes import diff
    from ingot.compiler import compile, load, optimize
    from ingot.explanation import explain
    from ingot.running import bench, evaluate, generate, stream

__version__ = "0.1.0"

_HOME = {"compile": "compiler", "load": "compiler", "optimize": "compiler", "explain": "explanation", "diff": "changes",
         "bisect": "bisection",
         "bench": "running", "evaluate": "running", "generate": "running", "stream": "running"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ingot' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"ingot.{_HOME[name]}"), name)


__all__ = ["IngotError", "__version__", "bench", "bisect", "compile", "diff", "evaluate", "explain", "generate", "load",
           "optimize", "stream"]
