"""Safetensors files written tensor by tensor: no more than the tensors of one weight are in memory at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingot.errors import IRError
from ingot.ir.types import DType, TensorType
from ingot.ir.weights import SAFETENSORS_DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 5_000_000_000
"""Bytes of tensors in one file."""

_NAMES: Mapping[DType, str] = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Tensors that are computed together. types: by key. make: their numbers, by key."""

    types: Mapping[str, TensorType]
    make: Callable[[], Mapping[str, np.ndarray]]

    @property
    def nbytes(self) -> int:
        return sum(map(_nbytes, self.types.values()))


def write_tensors(folder: Path, entries: Sequence[Entry], *, largest: int = LARGEST,
                  progress: Callable[[int, int, str], None] | None = None) -> int:
    """Write tensors into a folder: one file, or several of at most `largest` bytes and an index; returns their bytes.

    The files are those of the safetensors library: tensors lie aligned, wider elements first. Raises OSError, and whatever
    computing a tensor raises.
    """
    files = list(_split(entries, largest))
    done = 0
    places: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        spans, start = _header(folder / name, part)
        with (folder / name).open("r+b") as file:
            for entry in part:
                if progress is not None:
                    progress(done, len(entries), next(iter(entry.types)))
                for key, array in entry.make().items():
                    file.seek(start + spans[key])
                    file.write(np.ascontiguousarray(_fitting(key, array, entry.types[key])).tobytes())
                done += 1
        places |= {key: name for entry in part for key in entry.types}
    total = sum(entry.nbytes for entry in entries)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _split(entries: Sequence[Entry], largest: int) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + entry.nbytes > largest:
            yield part
            part, size = [], 0
        part.append(entry)
        size += entry.nbytes
    yield part


def _header(path: Path, entries: Sequence[Entry]) -> tuple[dict[str, int], int]:
    """Write the header, and zeros up to the end; returns where each tensor starts, and where the first one does."""
    types = {key: type for entry in entries for key, type in entry.types.items()}
    spans: dict[str, int] = {}
    at = 0
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for key in sorted(types, key=lambda key: (-types[key].dtype.bits, key)):
        spans[key], end = at, at + _nbytes(types[key])
        table[key] = {"dtype": _NAMES[types[key].dtype], "shape": list(types[key].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return spans, 8 + len(text)


def _fitting(key: str, array: np.ndarray, type: TensorType) -> np.ndarray:
    if array.shape != type.shape or array.dtype != type.dtype.numpy:
        raise IRError(f"{key} was to be {type}, it is {array.dtype}{list(array.shape)}")
    return array


def _nbytes(type: TensorType) -> int:
    return math.prod(type.shape) * type.dtype.bits // 8
