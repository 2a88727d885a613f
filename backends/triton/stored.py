"""A compiled module on disk: its IR, its weights in one safetensors file, and the source of its kernels to read.

Element types that safetensors does not know are stored as bytes: codes below 8 bits packed along the last axis, the first in
the lowest bits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ingot.errors import ArtifactError
from ingot.ir.formats.packing import pack_bits, unpack_bits
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import TensorType, u8
from ingot.ir.value import Const
from ingot.ir.weights import SAFETENSORS_DTYPES, DerivedWeight, FileWeight, Weight

GRAPH, WEIGHTS, KERNELS = "module.ir", "weights.safetensors", "kernels.py"
_NAMES = {dtype.name: name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_module(module: Module, folder: Path, source: str) -> None:
    """Writes the files of a module into a folder, one weight in memory at a time. source: of its kernels."""
    (folder / KERNELS).write_text(source, encoding="utf-8")
    header: dict[str, object] = {}
    offset = 0
    for const in module.consts.values():
        held = _held(const.type)
        size = held.size * held.dtype.bits // 8
        assert isinstance(size, int)
        header[const.name] = {"dtype": _NAMES[held.dtype.name], "shape": held.shape, "data_offsets": (offset, offset + size)}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for const in module.consts.values():
            file.write(np.ascontiguousarray(_bytes(const)).tobytes())
    (folder / GRAPH).write_text(print_module(module), encoding="utf-8")


def read_module(folder: Path) -> Module:
    """The module `write_module` wrote; its weights are read from the file when they are wanted. Raises ArtifactError."""
    path = folder / GRAPH
    if not path.is_file():
        raise ArtifactError("the module is missing", where=str(path), hint="compile the model again")
    module = parse_module(path.read_text(encoding="utf-8"), filename=path.name)
    for const in module.consts.values():
        const.weight = _weight(const, folder / WEIGHTS)
    return module


def _held(type: TensorType) -> TensorType:
    """The type a weight has in the file."""
    if type.dtype.name in _NAMES:
        return type
    *rows, last = type.shape or (1,)
    return TensorType(u8, (*rows, (last * type.dtype.bits + 7) // 8))


def _bytes(const: Const) -> np.ndarray:
    array = const.weight.materialize()
    if const.type.dtype.name in _NAMES:
        return array
    raw = array.view(np.uint8) if array.dtype.itemsize == 1 else np.ascontiguousarray(array).view(np.uint8)
    return pack_bits(raw, const.type.dtype.bits) if const.type.dtype.bits < 8 else raw


def _weight(const: Const, path: Path) -> Weight:
    held = _held(const.type)
    stored = FileWeight(path, const.name, held)
    if held == const.type:
        return stored
    bits, kind, shape = const.type.dtype.bits, const.type.dtype.numpy, const.type.shape

    def restored(array: np.ndarray) -> np.ndarray:
        raw = unpack_bits(array, bits, shape[-1]) if bits < 8 else np.ascontiguousarray(array)
        return raw.view(kind).reshape(shape)

    return DerivedWeight(const.type, restored, (stored,), stored.origin)
