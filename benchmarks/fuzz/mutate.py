"""Mutations that know a format, so that most inputs get past the first check of a reader.

Every mutation is a pure function of its input and a random generator.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]

INTEGERS = (0, 1, 2, 3, 7, 8, 64, 255, 4096, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**18)
"""Sizes at which something overflows, wraps around or does not fit into memory."""

FLOATS = (0.0, -0.0, 0.5, 1e-45, 1e300, float("inf"), float("nan"))

_TOKEN = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|[%@][\w.\-]+|\d+\.\.\d+|[A-Za-z_][\w\-]*|[\d][\w.]*|\s+|.")
_WILD = ("", " + 1", " - S", "*0", " // 2", " % 3", "(" * 400, "[" * 400, "-" * 400)


def text(pool: Sequence[str]) -> Mutate:
    """Mutates tokens and lines of a text; `pool` holds whole texts to take foreign tokens and lines from.

    Most of the time a token is replaced by one of its own kind: a name by a name, a type by a type, a number by a number.
    """
    foreign: dict[str, list[str]] = {}
    for token in sorted({token for whole in pool for token in _TOKEN.findall(whole) if not token.isspace()}):
        foreign.setdefault(_kind(token), []).append(token)
    lines = sorted({line for whole in pool for line in whole.split("\n") if line.strip()})

    def mutate(data: bytes, rng: random.Random) -> bytes:
        mine = data.decode("utf-8", "replace")
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            mine = _change_lines(mine, lines, rng) if rng.random() < 0.2 else _change_token(mine, foreign, rng)
        return mine.encode("utf-8", "replace")

    return mutate


_KINDS = {"%", "@", "\"", "type", "word", "number"}


def _kind(token: str) -> str:
    if token[0] in "%@\"":
        return token[0]
    if re.fullmatch(r"[a-z]\d+(e\dm\d)?|bf16|bool", token):
        return "type"
    if token in ("module", "dim", "in", "func", "return"):
        return "keyword"
    return "word" if token[0].isalpha() else "number" if token[0].isdigit() and ".." not in token else token


def _change_token(mine: str, foreign: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    parts = _TOKEN.findall(mine)
    places = [i for i, token in enumerate(parts) if not token.isspace()]
    if not places:
        return rng.choice(foreign["word"])
    kinds = sorted({_kind(parts[i]) for i in places})  # numbers as often as the many names
    kind = rng.choice([k for k in kinds if k in _KINDS] if rng.random() < 0.8 and set(kinds) & _KINDS else kinds)
    at = rng.choice([i for i in places if _kind(parts[i]) == kind])
    other = rng.choice(places)
    match rng.randrange(20):
        case 0:
            parts[at] = ""
        case 1:
            parts[at] *= rng.choice((2, 2, 3, 500))
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case 3:
            parts[at] = parts[other]
        case 4:
            parts[at] += rng.choice(_WILD)
        case 5 | 6 | 7 | 8:
            parts[at] = rng.choice(foreign.get(kind, foreign["word"]))
        case 9 | 10 | 11 if kind == "number":
            parts[at] = str(rng.choice((*INTEGERS, -1, -2, *FLOATS)))
        case _:
            parts[at] = parts[rng.choice([i for i in places if _kind(parts[i]) == kind])]
    return "".join(parts)


def _change_lines(mine: str, pool: Sequence[str], rng: random.Random) -> str:
    lines = mine.split("\n")
    equations = [i for i, line in enumerate(lines) if " = " in line]
    places = equations if equations and rng.random() < 0.8 else range(len(lines))
    at = rng.choice(places)
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.choice(places), lines[at])
        case 2:
            other = rng.choice(places)
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            lines.insert(at, rng.choice(pool))
    return "\n".join(lines)


def json_value(data: bytes, rng: random.Random) -> bytes:
    """Mutates places of a JSON value: another value, a value from elsewhere, a key less or renamed."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return data[: rng.randrange(len(data) + 1)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        root = _change_value(root, rng)
    made = json.dumps(root).encode()
    if rng.random() < 0.02:
        return made.replace(b"1", b"[" * 5000, 1)
    return made


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        inside = pending.pop()
        if isinstance(inside, dict | list):
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            found += [(inside, key) for key in keys]
            pending += [inside[key] for key in keys]
    return found


def _change_value(root: Any, rng: random.Random) -> Any:
    places = _places(root)
    if not places or rng.random() < 0.01:
        return rng.choice((None, [], {}, "", 0, [root]))
    holder, key = rng.choice(places)
    other, elsewhere = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = json.loads(json.dumps(other[elsewhere]))
        case 2:
            holder[key] = rng.choice((None, True, False, "", "none", "a/../../b", "\0", "é" * 40, [], {}, [[]], {"": None}, -1,
                                      *FLOATS))
        case 3:
            number = rng.choice(INTEGERS)
            holder[key] = rng.choice((number, -number, str(number), [number], [number] * 9, float(number)))
        case 4 if isinstance(holder, dict):
            holder[str(elsewhere)] = holder.pop(key)
        case _:
            found = holder[key]
            if isinstance(found, int):
                holder[key] = found + rng.choice((-1, 1, found))
            elif isinstance(found, str):
                at = rng.randrange(len(found) + 1)
                holder[key] = found[:at] + rng.choice(("", "\0", "{{", "{% ", "%}", "..", "/", "1", "\ud800")) + found[at + 1:]
            else:
                holder[key] = [found] * 3
    return root


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Mutates the header of a safetensors file; its length is mostly kept right."""
    length = min(int.from_bytes(data[:8], "little"), len(data))
    head, body = data[8:8 + length], data[8 + length:]
    head = json_value(head, rng)
    size = rng.choice(INTEGERS) if rng.random() < 0.1 else len(head)
    return size.to_bytes(8, "little") + head + body[: rng.choice((len(body), len(body) // 2))]


def compressed(inner: Mutate) -> Mutate:
    """Mutates what a gzip file holds by `inner`; now and then it becomes very long."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            content = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return data[: rng.randrange(len(data) + 1)]
        if rng.random() < 0.01:
            return gzip.compress(content + bytes(1 << 28), 1, mtime=0)
        return gzip.compress(inner(content, rng), mtime=0)

    return mutate


def archive(inner: Mutate) -> Mutate:
    """Mutates one file of a zip archive (an .npz) by `inner`, and sometimes the files' names; check sums are made right."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as old:
                files = {name: old.read(name) for name in old.namelist()}
        except Exception:  # a mutated archive fails in many ways
            return data[: rng.randrange(len(data) + 1)]
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as new:
            chosen = rng.choice(list(files) or [""])
            renamed = {rng.choice((name, name, name, "é", "x", "a/b.npy", "pos.npy")): name for name in files}
            for to, name in renamed.items():
                new.writestr(zipfile.ZipInfo(to), inner(files[name], rng) if name == chosen else files[name])
        return made.getvalue()

    return mutate


def npy(data: bytes, rng: random.Random) -> bytes:
    """Mutates the header of an .npy file: its text, or the bytes before it."""
    if len(data) < 10 or rng.random() < 0.2:
        return data[: rng.randrange(len(data) + 1)]
    length = int.from_bytes(data[8:10], "little")
    head = data[10:10 + length].decode("latin-1")
    kinds = ("<i8", "|O", "<f8", "<U4", "<M8", "|V8", ">i4", "<u8", "|b1", "<c16", "[('a', '<i8')]")
    numbers = (*INTEGERS, -1, "(2, 3)", "()", "True", *kinds)
    head = re.sub(r"\d+|<i8", lambda m: str(rng.choice(numbers)) if rng.random() < 0.4 else m[0], head)
    packed = head.encode("latin-1", "replace")
    return data[:8] + struct.pack("<H", min(len(packed), 65535)) + packed + data[10 + length:]


def binary(data: bytes, rng: random.Random) -> bytes:
    """Overwrites some integers of a binary file by interesting ones, little endian, 4 or 8 bytes."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        width = rng.choice((4, 8))
        at = int(len(made) * rng.random() ** 3)  # headers come first
        number = rng.choice((*INTEGERS, *range(16), len(data), len(data) - at)) & (1 << 8 * width) - 1
        made[at:at + width] = number.to_bytes(width, "little")
    return bytes(made)
