"""Kernels that were compiled when their artifact was written, found where it runs.

Triton keeps what it compiled in folders named by a hash of all that matters: the source, the types and constants, the chip,
Triton's own build. An artifact's folder `compiled` holds such folders (see `prebuild`), and Triton is shown them beside its own
cache. So nothing here decides what fits: where the hash is another one, Triton compiles as it ever does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

COMPILED = "compiled"
"""The folder of an artifact."""


@contextmanager
def offered(folder: Path | None) -> Iterator[None]:
    """Within it, Triton finds the compiled kernels of an artifact's folder; it keeps what it compiles where it ever does."""
    if folder is None or not (folder / COMPILED).is_dir():
        yield
        return
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    manager = _beside(knobs.cache.manager_class or FileCacheManager, folder / COMPILED)
    with knobs.cache.scope():
        knobs.cache.manager_class = manager
        yield


@cache
def _beside(usual: Any, kept: Path) -> Any:
    """Triton's cache manager, which first looks into a folder. Made once, not at every run."""

    class Offered(usual):  # type: ignore[misc]
        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override=override, dump=dump)
            self.offered = kept / key

        def get_group(self, filename: str) -> dict[str, str] | None:
            if (self.offered / filename).is_file():
                return {file.name: str(file) for file in self.offered.iterdir()}
            found: dict[str, str] | None = super().get_group(filename)
            return found

    return Offered
