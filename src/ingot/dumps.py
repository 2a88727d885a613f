"""Dumps on disk: the text of a module, the stages and receipts inside an artifact."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.errors import ArtifactError, IngotError
from ingot.runtime.manifest import MANIFEST, Manifest
from ingot.runtime.records import record

if TYPE_CHECKING:
    from ingot.ir.module import Module
    from ingot.passes.pipeline import Receipt

LARGEST = 1 << 28
"""Bytes of the longest text taken from a compressed dump; that of a model of 7 billion parameters has a few million."""


def read_text(path: Path) -> str:
    """The text of a file, or of standard input for `-`. Raises IngotError when it cannot be read."""
    if str(path) == "-":
        return sys.stdin.read()
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                text = file.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise IngotError(f"cannot read the dump: it is longer than {LARGEST:,} bytes", where=str(path))
            return text.decode()
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise IngotError("cannot read the dump: it is not UTF-8 text", where=str(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise IngotError(f"cannot read the dump: {getattr(error, 'strerror', None) or error}", where=str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise IngotError(f"cannot write: {error.strerror}", where=str(path), hint="choose another output") from error


def read_dump(path: Path) -> Module:
    """The module a dump describes; its weights are known by type and origin only."""
    from ingot.ir.text import parse_module

    return parse_module(read_text(path), filename=str(path))


def dump_text(path: Path, *, after: str | None = None) -> str:
    """The text of an .ir file, or of a stage of an artifact: `after` a pass (its last run, or one as `09-dce`), `import`, or
    the end (None).

    Raises ArtifactError listing the stages when there is none of that name.
    """
    if not is_artifact(path):
        if after is not None:
            raise ArtifactError("only an artifact keeps its stages; this is one dump", where=str(path), hint="leave --after out")
        return read_text(path)
    manifest = Manifest.load(path, check_files=False)
    if not manifest.stages:
        raise ArtifactError("this artifact keeps no stages", where=str(path))
    if after is None:
        return read_text(path / manifest.stages[-1])
    stages = {key: stage for stage in manifest.stages for key in (_numbered(stage), _pass_of(stage))}
    if after not in stages:
        names = dict.fromkeys(map(_pass_of, manifest.stages))
        raise ArtifactError(f"no stage {after}", where=str(path), hint=f"stages: {', '.join(names)}")
    return read_text(path / stages[after])


def is_artifact(path: Path) -> bool:
    """Whether a path is the directory of an artifact. Raises ArtifactError for another directory."""
    if path.is_dir() and not (path / MANIFEST).exists():
        Manifest.load(path)
    return (path / MANIFEST).exists()


def stage_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The stages of an artifact in order, each with its name (`09-dce`) and text; of an .ir file that one."""
    if not is_artifact(path):
        yield path.name, read_text(path)
        return
    for stage in Manifest.load(path, check_files=False).stages:
        yield _numbered(stage), read_text(path / stage)


def read_module(source: Path | str) -> Module:
    """The module of a dump, of an artifact (its last stage), or of `ARTIFACT@STAGE`, the stage as in `dump_text`."""
    from ingot.ir.text import parse_module

    path, at, stage = str(source).rpartition("@")
    if not at or Path(source).exists():
        path, stage = str(source), ""
    return parse_module(dump_text(Path(path), after=stage or None), filename=str(source))


def stage_before(path: Path, name: str) -> str | None:
    """The stage of an artifact that its first run of pass `name` began with, as `09-dce`; None where there is no such run."""
    if not (path / MANIFEST).exists():
        return None
    stages = Manifest.load(path, check_files=False).stages
    return next((_numbered(a) for a, b in pairwise(stages) if _pass_of(b) == name), None)


def _numbered(stage: str) -> str:
    """`09-dce` of `stages/09-dce.ir.gz`."""
    return Path(stage).name.split(".")[0]


def _pass_of(stage: str) -> str:
    return _numbered(stage).partition("-")[2]


def read_receipts(path: Path) -> list[Receipt]:
    """The receipts an artifact carries. Raises ArtifactError when they are damaged."""
    from ingot.passes.pipeline import Receipt

    file = path / Manifest.load(path, check_files=False).receipts
    try:
        found = json.loads(read_text(file))
        if not isinstance(found, list):
            raise TypeError("a list is expected")
        return [record(Receipt, entry) for entry in found]
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the receipts are damaged: {error}", where=str(file),
                            hint="compile the model again: ingot compile MODEL -o OUT") from error


def statistics(path: Path, *, after: str | None = None) -> dict[str, Any]:
    """Ops by name, parameters and bytes by element type of a dump."""
    from ingot.ir.text import parse_module

    module = parse_module(dump_text(path, after=after), filename=str(path))
    parameters: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for const in module.consts.values():
        size = const.type.size
        parameters[const.type.dtype.name] += size if isinstance(size, int) else 0
        stored[const.type.dtype.name] += const.weight.nbytes
    return {"name": module.name, "history": module.history, "ops": dict(Counter(op.name for op in module.ops).most_common()),
            "parameters": dict(parameters), "bytes": dict(stored)}
