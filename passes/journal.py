"""What a long pass has finished, kept on disk, so that a run that was killed can be started again and go on from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ingot.errors import ArtifactError
from ingot.ir.module import Module
from ingot.ir.text import print_module
from ingot.ir.types import TensorType
from ingot.ir.weights import ArrayWeight, DerivedWeight, FileWeight, Weight


class Journal:
    """A folder with one section for each pass that keeps something; without a folder nothing is kept.

    A section goes by the number of passes before it and a digest of all that its contents follow from: `maker`, the pass with
    its options, the module (its text, the files of its weights by size and time, weights in memory by their numbers) and the
    calibration text. What was kept under another digest is removed.
    """

    def __init__(self, folder: Path | None = None, *, maker: str = "") -> None:
        """folder: made when something is kept. maker: the program and its version."""
        self.folder = folder
        self.maker = maker

    def section(self, module: Module, stage: str, batches: Sequence[np.ndarray]) -> Section:
        """The section of a pass, given as pipeline text, that is about to change a module."""
        if self.folder is None:
            return Section(None)
        number = f"{len(module.history):03d}"
        own = self.folder / f"{number}-{digest(module, self.maker, stage, batches)}"
        stale = [p for p in self.folder.iterdir() if p.name[:3] >= number and p != own] if self.folder.is_dir() else []
        if not own.exists() and any(p.name[:3] == number for p in stale):
            warnings.warn("an interrupted run left weights of another model, other options or other calibration text: "
                          "they are removed, and the work begins anew", stacklevel=2)
            for path in stale:
                shutil.rmtree(path, ignore_errors=True)
        return Section(own)

    def remove(self) -> None:
        """Forget everything."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Section:
    """Named sets of arrays, each written whole or not at all, and on the disk before `write` returns."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, name: str, types: Mapping[str, TensorType]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays kept under a name, and the facts beside them; None where there are none of these types."""
        if self.folder is None:
            return None
        try:
            with self._file(name).open("rb") as file, np.load(file, allow_pickle=False) as kept:
                arrays = {part: kept[f"array.{part}"].view(t.dtype.numpy).reshape(t.shape) for part, t in types.items()}
                return arrays, json.loads(str(kept["facts"]))
        except Exception:  # not there, or damaged, for which zipfile, zlib and numpy raise a dozen types
            return None

    def write(self, name: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Keep arrays, and plain facts, under a name. Raises ArtifactError where they cannot be written."""
        if self.folder is None:
            return
        file = self._file(name)
        aside = file.with_suffix(f".{os.getpid()}")
        data: dict[str, Any] = {f"array.{part}": np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                                for part, array in arrays.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as out:
                np.savez(out, facts=np.array(json.dumps(dict(facts))), **data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(aside, file)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise ArtifactError(f"cannot keep what is finished: {error.strerror}", where=str(self.folder),
                                hint="free some space, then run the same command: it goes on from here") from error

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{quote(name, safe='')}.npz"


def digest(module: Module, maker: str, stage: str, batches: Sequence[np.ndarray]) -> str:
    """What tells a run apart from others, as far as the contents of a section go."""
    total = hashlib.sha256()
    for text in (maker, stage, print_module(module)):
        total.update(f"{len(text)} {text}".encode())
    for weight in {id(w): w for const in module.consts.values() for w in leaves(const.weight)}.values():
        if isinstance(weight, FileWeight):
            stat = weight.path.stat()
            total.update(f"{weight.path.name} {weight.key} {stat.st_size} {stat.st_mtime_ns}".encode())
        elif isinstance(weight, ArrayWeight):
            _update(total, weight.array)
    for ids in batches:
        _update(total, np.asarray(ids))
    return total.hexdigest()[:16]


def leaves(weight: Weight) -> Iterator[Weight]:
    """The weights that a weight is computed from in the end; itself where it is not computed."""
    if not isinstance(weight, DerivedWeight):
        yield weight
    else:
        for source in (*weight.inputs, *weight.reads):
            yield from leaves(source)


def _update(total: Any, array: np.ndarray) -> None:
    total.update(f"{array.dtype} {array.shape}".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
