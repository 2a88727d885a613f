"""Dumps on disk: the text of a module, the stages and receipts inside an artifact."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.errors import ArtifactError, IngotError
from ingot.runtime.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from ingot.ir.module import Module
    from ingot.passes.pipeline import Receipt

def read_text(path: Path) -> str:
    """The text of a file, or of standard input for `-`. Raises IngotError when it cannot be read."""
    if str(path) == "-":
        return sys.stdin.read()
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode()
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise IngotError(f"cannot read the dump: {reason}", where=str(path)) from error


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
    """The text of an .ir file, or of a stage of an artifact: `after` a pass (its last run), `import`, or the end (None).

    Raises ArtifactError listing the stages when there is none of that name.
    """
    if not (path / MANIFEST).exists():
        if path.is_dir():
            Manifest.load(path)
        if after is not None:
            raise ArtifactError("only an artifact keeps its stages; this is one dump", where=str(path), hint="leave --after out")
        return read_text(path)
    manifest = Manifest.load(path, check_files=False)
    if after is None:
        return read_text(path / manifest.stages[-1])
    names = [Path(stage).name.split(".")[0].split("-", 1)[1] for stage in manifest.stages]
    if after not in names:
        raise ArtifactError(f"no stage {after}", where=str(path), hint=f"stages: {', '.join(dict.fromkeys(names))}")
    last = len(names) - 1 - names[::-1].index(after)
    return read_text(path / manifest.stages[last])


def read_receipts(path: Path) -> list[Receipt]:
    """The receipts an artifact carries."""
    from ingot.passes.pipeline import Receipt

    manifest = Manifest.load(path, check_files=False)
    return [Receipt(**record) for record in json.loads(read_text(path / manifest.receipts))]


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
