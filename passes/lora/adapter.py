"""A low-rank adapter in PEFT's files: what it changes of which module, as handles, with nothing read but headers.

LoRA (Hu et al., arXiv 2106.09685), rank-stabilised (Kalajdzievski, arXiv 2312.03732) and weight-decomposed (DoRA, Liu et
al., arXiv 2402.09353). Modules are called as in the model the adapter was trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.errors import CheckpointError, PassError, listed
from ingot.ir.weights import FileWeight, first_not_finite, header
from ingot.passes.lora.adapter_config import CONFIG, AdapterConfig, read_config

TENSORS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "bias", "lora_embedding_A": "a", "lora_embedding_B": "b",
          "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude"}
"""How the keys of one module's tensors end, and what they are."""
_ROWS = "token_adapter.trainable_tokens_delta"
_OTHERS = "configuration and tensors are of different adapters"

Parts = Mapping[str, Mapping[str, FileWeight]]


@dataclass(frozen=True)
class LowRank:
    """What is added to the weight [out, in] of one module: scale * b @ a.

    a: [rank, in]. b: [out, rank]. magnitude: [out], the norms that the rows of the sum are given (DoRA). bias: [out], added
    to the module's bias times the scale. table: the module is an embedding, whose weight is [in, out], a row per token.
    alpha, rooted: see `scaling`.
    """

    a: FileWeight
    b: FileWeight
    magnitude: FileWeight | None
    bias: FileWeight | None
    table: bool
    alpha: float
    rooted: bool

    @property
    def rank(self) -> int:
        return self.a.type.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the module."""
        return self.b.type.shape[0], self.a.type.shape[1]

    def scaling(self, factor: float = 1.0) -> float:
        """`factor` times alpha / rank; alpha / sqrt(rank) where the adapter is rank-stabilised."""
        return factor * self.alpha / (math.sqrt(self.rank) if self.rooted else self.rank)


@dataclass(frozen=True)
class Adapter:
    """One adapter directory.

    changes: by module. values: by parameter, what modules saved as a whole and trained biases become. base: by parameter,
    the numbers below the changes, where the adapter brings them along (embeddings that were resized). rows: by module, new
    rows of its weight and where they go.
    """

    path: Path
    config: AdapterConfig
    changes: Mapping[str, LowRank]
    values: Mapping[str, FileWeight]
    base: Mapping[str, FileWeight]
    rows: Mapping[str, tuple[FileWeight, tuple[int, ...]]]

    def check_finite(self) -> None:
        """Raises CheckpointError where a number is NaN or infinite. Reads all tensors."""
        for key, weight in _tensors(self.path).items():
            array = weight.read()
            bad = first_not_finite(array)
            if bad is not None:
                raise CheckpointError(f"{key} is {float(array[bad])} at {list(bad)}", where=str(self.path / TENSORS),
                                      hint="the adapter is broken: its training diverged, or the file is damaged")


def read_adapter(path: Path) -> Adapter:
    """The adapter in a directory.

    Raises CheckpointError: files missing, broken or pickled; a kind of adapter that cannot be merged; tensors that
    contradict the configuration.
    """
    config = read_config(path)
    where = str(path / TENSORS)
    parts: dict[str, dict[str, FileWeight]] = {}
    values: dict[str, FileWeight] = {}
    base: dict[str, FileWeight] = {}
    rows: dict[str, tuple[FileWeight, tuple[int, ...]]] = {}
    tables: set[str] = set()
    for key, weight in _tensors(path).items():
        name = key.removeprefix(_PREFIX)
        end = next((end for end in (*_PARTS, _ROWS) if name.endswith(f".{end}")), None)
        module = name.removesuffix(f".{end}")
        if end == _ROWS:
            rows[module] = weight, tuple(config.rows(module))
        elif end is not None:
            parts.setdefault(module, {})[_PARTS[end]] = weight
            tables |= {module} if "embedding" in end else set()
        elif ".base_layer." in name and not name.endswith(".bias"):
            base[name.replace(".base_layer.", ".")] = weight
        else:
            values[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = weight
    unknown = [name for name in values if ".lora_" in name or ".token_adapter." in name]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors are of no known kind: {listed(unknown)}", where=where,
                              hint="LoRA, rsLoRA and DoRA of linear and embedding layers are read")
    if not parts and not values and not rows:
        raise CheckpointError("it holds no tensors of an adapter", where=where)
    odd = [module for module, (new, at) in rows.items() if new.type.rank != 2 or new.type.shape[0] != len(at)]
    if odd:
        raise CheckpointError(f"trainable_token_indices does not say which rows of {listed(odd)} are replaced", where=where,
                              hint=_OTHERS)
    _check(config, parts, where)
    changes = {module: LowRank(found["a"], found["b"], found.get("magnitude"), found.get("bias"), module in tables,
                               config.alpha(module), config.rooted) for module, found in parts.items()}
    return Adapter(path, config, changes, values, base, rows)


def check_paths(paths: Sequence[str]) -> None:
    """Raises PassError for a path that the text of a pipeline cannot carry."""
    for path in paths:
        if re.search(r"[\s{}+]", path) or not path:
            raise PassError(f"the path of an adapter has no spaces, braces or +: {path!r}", hint="link to it: ln -s")


def _tensors(path: Path) -> dict[str, FileWeight]:
    file = path / TENSORS
    if not file.is_file():
        pickled = sorted(p.name for p in path.glob("*.bin"))
        if pickled:
            raise CheckpointError(f"the tensors are pickled ({pickled[0]}), and unpickling runs code from the file",
                                  where=str(path), hint="convert them once, where you trust them: load the adapter with peft "
                                                        "and call save_pretrained, which writes safetensors")
        raise CheckpointError(f"there is no {TENSORS}", where=str(path), hint="fetch the file; the adapter is incomplete")
    found = {key: FileWeight(file, key, entry.type) for key, entry in header(file).items()}
    numbers = [key for key, weight in found.items() if not weight.type.dtype.is_float]
    if numbers:
        raise CheckpointError(f"{len(numbers)} tensors hold no floats: {listed(numbers)}", where=str(file))
    return found


def _check(config: AdapterConfig, parts: Parts, where: str) -> None:
    """Raises CheckpointError, listing the modules, where tensors contradict each other or the configuration."""
    alone = [module for module, found in parts.items() if not {"a", "b"} <= found.keys()]
    if alone:
        raise CheckpointError(f"{len(alone)} modules have only one of the two factors: {listed(alone)}", where=where,
                              hint="the adapter is incomplete")
    kernels = [module for module, found in parts.items() if any(found[x].type.rank != 2 for x in "ab")]
    if kernels:
        raise CheckpointError(f"{len(kernels)} modules are no linear or embedding layers (convolutions, say), which are not "
                              f"merged: {listed(kernels)}", where=where)
    wrong = []
    for module, found in parts.items():
        a, b, rank = found["a"].type.shape, found["b"].type.shape, config.rank(module)
        if not a[0] == b[1] == rank or rank < 1:
            wrong.append(f"{module} (a {list(a)}, b {list(b)}, rank {rank})")
    if wrong:
        raise CheckpointError(f"{len(wrong)} modules have another rank than {CONFIG} says: {listed(wrong, most=4)}", where=where,
                              hint=_OTHERS)
    odd = [module for module, found in parts.items() if ("magnitude" in found) != config.dora]
    if odd:
        raise CheckpointError(f"use_dora is {str(config.dora).lower()}, but {len(odd)} modules have "
                              f"{'no' if config.dora else 'a'} magnitude vector: {listed(odd)}", where=where, hint=_OTHERS)
    long = [f"{module} {list(found[x].type.shape)}" for module, found in parts.items() for x in ("magnitude", "bias")
            if x in found and found[x].type.shape != found["b"].type.shape[:1]]
    if long:
        raise CheckpointError(f"{len(long)} vectors have another length than their module: {listed(long)}", where=where)
