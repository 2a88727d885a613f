"""A copy of the sources, so that a planted bug never touches the checkout, nor a change of the checkout a run."""

from __future__ import annotations

import compileall
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory

from benchmarks.mutations.mutant import Mutant

ROOT = Path(__file__).parents[2]
LAYERS = ("ir", "frontend", "passes", "backends", "runtime")
COPIED = (*LAYERS, "src", "tests", "benchmarks", "examples", "conftest.py", "pyproject.toml")


@contextmanager
def shadow(*, compiled: bool = True) -> Iterator[Path]:
    """The root of the copy. compiled: beforehand, which is worth it for many mutants."""
    with TemporaryDirectory(prefix="ingot-mutants-") as folder:
        root = Path(folder) / "checkout"
        root.mkdir()
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "rivals", "results", *LAYERS)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=skipped if name == "src" else shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)
        for layer in LAYERS:
            (root / "src/ingot" / layer).symlink_to(f"../../{layer}")
        # By hash: what is compiled of a file is not taken for a mutant of the same second.
        for name in (*LAYERS, "src") if compiled else ():
            compileall.compile_dir(root / name, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        yield root


@contextmanager
def planted(root: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with a mutant in it."""
    path = root / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def stale(root: Path, mutant: Mutant) -> str | None:
    """Why a mutant cannot be planted any more; None when it can."""
    path = root / mutant.file
    if not path.is_file():
        return "its file is gone"
    count = path.read_text().count(mutant.old)
    if mutant.old == mutant.new or count != 1:
        return f"its snippet occurs {count} times" if count != 1 else "it changes nothing"
    return None
