"""Importing code of the user's: modules by name, also from the working directory, and single files."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ingot.errors import IngotError


def import_user_module(name: str) -> ModuleType:
    """The module of that dotted name, or of a path that ends in `.py`; imported once.

    Raises IngotError, with the file and line, when it cannot be imported.
    """
    try:
        if name.endswith(".py"):
            return _import_file(Path(name).expanduser())
        with _working_directory_importable():
            return importlib.import_module(name)
    except IngotError:
        raise
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise IngotError(f"cannot import {name}: {reason}", where=_place(error)) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise IngotError("no such file", where=str(path), hint="give a Python file, or the dotted name of an importable module")
    path = path.resolve()
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files of one name are two modules
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """As under `python -m`: a script's own directory is on the path, that of an installed command is not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _place(error: BaseException) -> str | None:
    """The line of the user's code an error comes from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
