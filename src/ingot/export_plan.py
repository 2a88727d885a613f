"""What an exported checkpoint holds: which tensors under which keys, and the configuration that describes them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import ArtifactError
from ingot.ir.formats import format_named
from ingot.ir.module import Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.types import DType, f32
from ingot.ir.value import Const
from ingot.ir.weights import ArrayWeight, FileWeight, Weight
from ingot.parameters import Original, Rows, held
from ingot.passes.lora.parameters import replaced

if TYPE_CHECKING:
    from ingot.backends.hf import Layout
    from ingot.backends.hf.layout import Matrix
    from ingot.backends.hf.writer import Entry

_WIDEST = 16
"""Bits of the narrowest element type that counts as a plain float here."""


class ExportPlan:
    """Tensors by key for a module whose parameters were `known` when it was imported from the directory `source`.

    codes: the quantised weights, by key. dtype: of all floats; None for what each is stored in. Where storing a number loses
    something, the module gets what is stored, so that it computes what the checkpoint will.
    Raises ArtifactError where the layout or the configuration cannot describe the module.
    """

    def __init__(self, module: Module, source: Path, known: Mapping[str, Original], layout: Layout, dtype: DType | None) -> None:
        from ingot.frontend.checkpoint import read_checkpoint
        from ingot.frontend.huggingface import tied_names
        from ingot.frontend.quantized.reader import weights_of

        self.module = module
        self.known = known
        self.layout = layout
        self.dtype = dtype
        checkpoint = read_checkpoint(source)
        self.raw = checkpoint.config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to tell was told at import
            self.stored = weights_of(checkpoint)
        self.usual = dtype or _usual(checkpoint.tensors.values())
        self.tied = {first: name for name, first in tied_names(source).items()} if any(o.tied for o in known.values()) else {}
        found = held(module, known)
        self.untied = bool(found.heads)
        self.floats: dict[str, tuple[Original, Weight]] = {known[name].key: (known[name], w) for name, w in found.floats.items()}
        self.floats |= {known[name].key: (known[name], _neutral(known[name])) for name in found.lost}
        rows: dict[str, Rows] = {known[name].key: r for name, r in found.codes.items()}
        for name, head in found.heads.items():
            key = self._head(known[name])
            if isinstance(head, Rows):
                rows[key] = head
            else:
                self.floats[key] = known[name], head
        self.codes: dict[str, tuple[Rows, Matrix]] = {key: (r, self._matrix(key, r)) for key, r in rows.items()}

    def entries(self) -> list[Entry]:
        """The tensors, those that are computed together as one entry. Rounds the module's numbers as they are stored."""
        from ingot.backends.hf.writer import Entry

        entries = self._coded()
        stored = self._stored_floats()
        entries += [Entry({key: w.type}, partial(_single, key, w)) for key, w in stored.items()]
        return sorted(entries, key=lambda entry: min(entry.types))

    def config(self) -> dict[str, Any]:
        """config.json."""
        config = {key: value for key, value in self.raw.items() if key not in ("quantization_config", "_name_or_path")}
        if self.untied:
            config["tie_word_embeddings"] = False
            if isinstance(config.get("text_config"), dict) and "tie_word_embeddings" in config["text_config"]:
                config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
        if self.dtype is not None:
            config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": _torch_name(self.dtype)}
        if self.codes:
            matrices = [matrix for _, matrix in self.codes.values()]
            config["quantization_config"] = self.layout.settings(matrices, self._float_linears())
        return config

    # --- quantised weights ------------------------------------------------------------------------------------------

    def _matrix(self, key: str, rows: Rows) -> Matrix:
        from ingot.backends.hf.layout import Matrix

        op = rows.op
        if any(isinstance(user, Embedding) for user in op.result.users):
            raise ArtifactError("the token embedding is quantised, and checkpoints hold codes of linears alone", where=f"@{key}",
                                hint="quantize{embedding=false} or quantize{lm-head=none}")
        if not key.endswith(".weight"):
            raise ArtifactError("it is quantised and no linear's weight", where=f"@{key}",
                                hint="leave it: quantize{skip=...}" if not key.endswith(".ordered") else
                                "its inputs are in another order (act-order), which is not exported")
        matrix = Matrix(key.removesuffix(".weight"), format_named(op.format), (rows.stop - rows.start, op.packed.type.shape[1]),
                        op.group, op.zero is None, self.usual)
        self.layout.check(matrix)
        return matrix

    def _coded(self) -> list[Entry]:
        """One entry for each `dequantize`, since its operands are computed together."""
        from ingot.backends.hf.writer import Entry

        together: dict[Any, list[tuple[Rows, Matrix]]] = {}
        for rows, matrix in self.codes.values():
            together.setdefault(rows.op, []).append((rows, matrix))
        entries = []
        for op, parts in together.items():
            operands = {name: value.weight for name, value in op.operand_fields if isinstance(value, Const)}
            types = {f"{m.linear}.{part}": type for _, m in parts for part, type in self.layout.types(m).items()}
            entries.append(Entry(types, self._maker(operands, parts)))
            stored = self.layout.scale(parts[0][1])
            if isinstance(op.scale, Const) and op.scale.type.dtype == f32 and stored != f32:
                self.module.set_weight(op.scale, _rounded(op.scale.weight, stored))
        return entries

    def _maker(self, operands: Mapping[str, Weight], parts: list[tuple[Rows, Matrix]]) -> Callable[[], dict[str, np.ndarray]]:
        def make() -> dict[str, np.ndarray]:
            arrays = {name: weight.materialize() for name, weight in operands.items()}
            n = len(arrays["packed"])
            whole = {name: np.broadcast_to(a, (n, a.shape[1])) if a.ndim == 2 else a for name, a in arrays.items()}
            return {f"{m.linear}.{part}": array for rows, m in parts
                    for part, array in self.layout.tensors(m, {name: a[rows.start:rows.stop] if a.ndim == 2 else a
                                                               for name, a in whole.items()}).items()}

        return make

    def _float_linears(self) -> list[str]:
        """The linears that are not quantised, by name."""
        keys = [self._head(o) if o.tied else o.key for o in self.known.values() if o.linear]
        return sorted(key.removesuffix(".weight") for key in keys if key not in self.codes and key.endswith(".weight"))

    # --- floats -----------------------------------------------------------------------------------------------------

    def _stored_floats(self) -> dict[str, Weight]:
        from ingot.frontend.keys import cast_weight

        out: dict[str, Weight] = {}
        changes: dict[Weight, Weight] = {}
        for key, (original, weight) in self.floats.items():
            first, *more = original.sources
            if weight is original.weight and key == original.key:
                for tensor in original.sources:
                    out[tensor.key] = cast_weight(tensor, self._dtype(tensor))
            elif more and original.weight is not None:
                raise ArtifactError(f"it is made of {1 + len(more)} tensors of the checkpoint, and a pass changed it",
                                    where=f"@{original.name}", hint="leave it out of the pass")
            else:
                out[key] = cast_weight(weight, self._dtype(first))
            stored = self._dtype(first)
            if stored.bits < weight.type.dtype.bits and not isinstance(weight, ArrayWeight):
                changes[weight] = _rounded(weight, stored)
        for const in self.module.consts.values():
            new = replaced(const.weight, changes)
            if new is not const.weight:
                self.module.set_weight(const, new)
        gone = {self._head(o) for o in self.known.values() if o.tied}
        known = {key for o in self.known.values() for key in (o.key, o.key.removesuffix(".ordered"), *(s.key for s in o.sources))}
        for key, tensor in self.stored.items():
            if key not in known | gone | self.codes.keys() | out.keys():
                out[key] = cast_weight(tensor, self._dtype(tensor))
        return out

    def _dtype(self, tensor: FileWeight) -> DType:
        """What a tensor of the checkpoint, or what became of it, is stored in."""
        plain = tensor.type.dtype.is_float and tensor.type.dtype.bits >= _WIDEST
        return tensor.type.dtype if plain and self.dtype is None else self.usual if tensor.type.dtype.is_float or not plain else \
            tensor.type.dtype

    def _head(self, original: Original) -> str:
        """The key of an output projection that was tied to a table."""
        if original.name not in self.tied:
            raise ArtifactError("the output projection became a weight of its own, for which the architecture has no name",
                                where=f"@{original.name}", hint="leave out the pass that unties it")
        return self.tied[original.name]


def _usual(tensors: Iterable[FileWeight]) -> DType:
    """The element type of most plain floats."""
    counted = Counter(t.type.dtype for t in tensors if t.type.dtype.is_float and t.type.dtype.bits >= _WIDEST)
    return counted.most_common(1)[0][0] if counted else f32


def _rounded(weight: Weight, dtype: DType) -> Weight:
    from ingot.frontend.keys import cast_weight

    return cast_weight(cast_weight(weight, dtype), weight.type.dtype)


def _neutral(original: Original) -> Weight:
    """The numbers of a norm's parameter that was folded into others: ones, or zeros for a bias.

    Whether it is that is seen when the checkpoint is read back. Raises ArtifactError for what can be none.
    """
    if len(original.shape) != 1:
        raise ArtifactError("the module no longer holds it", where=f"@{original.name}", hint="leave out the pass that removes it")
    fill = np.zeros if original.name.endswith("bias") else np.ones
    return ArrayWeight(fill(original.shape, np.float32))


def _single(key: str, weight: Weight) -> dict[str, np.ndarray]:
    return {key: weight.materialize()}


def _torch_name(dtype: DType) -> str:
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype.name]
