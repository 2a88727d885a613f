"""The header of a GGUF file, walked once: whether everything that it announces fits into the file.

Layout: ggml's docs/gguf.md, versions 2 and 3. Libraries that read such files believe the counts in them, and a damaged count
makes them read on beyond the end of the file for hours.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from ingot.errors import CheckpointError

MAGIC = b"GGUF"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a scalar by its type in the file: u8, i8, u16, i16, u32, i32, f32, bool, u64, i64, f64."""
_STRING, _ARRAY = 8, 9
_LEAST_TENSOR = 8 + 4 + 4 + 8
_LEAST_ENTRY = 8 + 4 + 1
_DEEPEST = 4
"""Arrays in arrays."""


def check_header(path: Path) -> None:
    """Raises CheckpointError: no GGUF file, an unknown version, a header that runs past the end, more layers than tensors."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise CheckpointError("this is not a GGUF file", where=str(path))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data, path).check()


class _Header:
    """A position in the header, which every read moves on and no read leaves the file by."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = len(MAGIC)
        self.order = "<"

    def check(self) -> None:
        version = self.number(4)
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self.order, self.at = ">", len(MAGIC)
            version = self.number(4)
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version} is not supported; versions 2 and 3 are")
        tensors, entries = self.number(8), self.number(8)
        self.room(tensors * _LEAST_TENSOR + entries * _LEAST_ENTRY)
        for _ in range(entries):
            self.entry(tensors)
        for _ in range(tensors):
            self.skip(self.number(8))
            self.skip(8 * self.number(4))
            self.skip(4 + 8)

    def entry(self, tensors: int) -> None:
        key = self.take(self.number(8))
        kind = self.number(4)
        if key.endswith(b".block_count") and kind in (4, 5, 10, 11):
            layers = self.number(_SIZES[kind])
            if layers > tensors:
                raise self.fail(f"it is said to have {layers:,} layers, and holds {tensors:,} tensors")
            return
        self.value(kind)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.skip(self.number(8))
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number(4), self.number(8)
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
                return
            self.room(count * 8)
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            raise self.fail(f"unknown type {kind} in the header")

    def number(self, width: int) -> int:
        found: int = struct.unpack(self.order + {4: "I", 8: "Q"}[width], self.take(width))[0]
        return found

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.skip(count)
        return self.data[self.at - count:self.at]

    def skip(self, count: int) -> None:
        self.room(count)
        self.at += count

    def room(self, count: int) -> None:
        """Refuses to go on where fewer than `count` bytes are left."""
        if count > len(self.data) - self.at:
            raise self.fail(f"the file ends inside its header ({len(self.data):,} bytes)", hint="download it again")

    def fail(self, message: str, *, hint: str | None = None) -> CheckpointError:
        return CheckpointError(message, where=str(self.path), hint=hint)
