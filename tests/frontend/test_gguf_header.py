"""Headers of GGUF files: counts that run past the end of the file are seen before anything believes them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ingot.errors import CheckpointError
from ingot.frontend.gguf_header import check_header


def text(value: str, order: str = "<") -> bytes:
    return struct.pack(f"{order}Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes, order: str = "<") -> bytes:
    return text(key, order) + struct.pack(f"{order}I", kind) + value


def tensor(name: str, *dims: int, order: str = "<") -> bytes:
    return text(name, order) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, 0, 0)


def header(entries: list[bytes], tensors: list[bytes], *, version: int = 3, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(entries)) + b"".join(entries + tensors)


WHOLE = [entry("general.name", 8, text("x")), entry("llama.block_count", 4, struct.pack("<I", 1)),
         entry("scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
         entry("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_whole_header(tmp_path: Path, order: str) -> None:
    entries = WHOLE if order == "<" else [entry("general.name", 8, text("x", ">"), ">")]
    (tmp_path / "x.gguf").write_bytes(header(entries, [tensor("w", 2, 3, order=order)], order=order))
    check_header(tmp_path / "x.gguf")


@pytest.mark.parametrize(("data", "message"), [
    (b"", "not a GGUF file"),
    (b"GGUF", "ends inside its header"),
    (header([], [], version=1), "version 1 is not supported"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "ends inside its header"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "ends inside its header"),
    (header([entry("a", 9, struct.pack("<IQ", 0, 1 << 50))], []), "ends inside its header"),
    (header([entry("a", 9, struct.pack("<IQ", 8, 1 << 50))], []), "ends inside its header"),
    (header([entry("a", 8, struct.pack("<Q", 1 << 63))], []), "ends inside its header"),
    (header([entry("a", 77, bytes(8))], []), "unknown type 77"),
    (header([entry("a", 9, struct.pack("<IQ", 9, 1) * 9)], []), "unknown type 9"),
    (header([], [tensor("w", 1)[:-4] + bytes(0)]), "ends inside its header"),
    (header([entry("llama.block_count", 4, struct.pack("<I", 2**31))], [tensor("w", 1)]), "2,147,483,648 layers, and holds 1 t"),
])
def test_damaged_headers(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        check_header(tmp_path / "x.gguf")


def test_every_cut_of_a_header_is_seen(tmp_path: Path) -> None:
    whole = header(WHOLE, [tensor("w", 2, 3)])
    for size in range(4, len(whole)):
        (tmp_path / "x.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="ends inside its header"):
            check_header(tmp_path / "x.gguf")
