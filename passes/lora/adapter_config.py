"""The configuration of a PEFT adapter: whether it can be merged, and what it says of a module, by PEFT's rules for names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import CheckpointError, listed
from ingot.ir.files import read_json

CONFIG = "adapter_config.json"

_CANNOT = {
    "target_parameters": "it adapts parameters of experts",
    "layer_replication": "it repeats layers of its base",
    "alora_invocation_tokens": "it acts only behind an invocation in the text, which a merged weight cannot",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between several adapters",
    "kasa_config": "KaSA changes the base weights as well",
    "monteclora_config": "MonteCLoRA draws its weights at random",
    "megatron_config": "its layers are Megatron's",
}
"""Entries that make an adapter more than a sum of products."""
_KNOWN = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
          "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
          "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
          "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
          "task_type", "trainable_token_indices", "use_dora", "use_rslora", "velora_config"}
"""Entries that are read, or say nothing about a finished adapter."""
_MOVES_BASE = re.compile(r"pissa|corda|olora|loftq|lora_ga")
"""Initialisations that take the adapter's first state out of the base weights."""
_DEFAULTS = {"r": 8, "lora_alpha": 8}
_TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,), "lora_alpha": (int, float), "rank_pattern": (dict,), "alpha_pattern": (dict,), "target_modules": (str, list),
    "exclude_modules": (str, list), "modules_to_save": (list,), "layers_pattern": (str, list), "layers_to_transform": (int, list),
    "trainable_token_indices": (dict, list)}

_INSIDE: dict[str, tuple[type, ...]] = {
    "rank_pattern": (int,), "alpha_pattern": (int, float), "target_modules": (str,), "exclude_modules": (str,),
    "modules_to_save": (str,), "layers_pattern": (str,), "layers_to_transform": (int,), "trainable_token_indices": (int,)}
"""What the lists and objects among them hold."""


@dataclass(frozen=True)
class AdapterConfig:
    """`adapter_config.json`; entries: as they stand there."""

    entries: Mapping[str, Any]

    @property
    def base_name(self) -> str | None:
        """The model the adapter was trained on, as its author called it."""
        name = self.entries.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    @property
    def dora(self) -> bool:
        return bool(self.entries.get("use_dora"))

    @property
    def rooted(self) -> bool:
        """Whether products are scaled by alpha / sqrt(rank) instead of alpha / rank."""
        return bool(self.entries.get("use_rslora"))

    @property
    def flipped(self) -> bool:
        """Whether adapted weights lie as [in, out]."""
        return bool(self.entries.get("fan_in_fan_out"))

    @property
    def keeps_ties(self) -> bool:
        """Whether an output projection tied to the token embedding follows what is said of the embedding."""
        return bool(self.entries.get("ensure_weight_tying"))

    def rank(self, module: str) -> int:
        return int(self._patterned("rank_pattern", module, "r"))

    def alpha(self, module: str) -> float:
        return float(self._patterned("alpha_pattern", module, "lora_alpha"))

    def rows(self, module: str) -> list[int]:
        """The rows of a module's weight that are replaced (`trainable_token_indices`)."""
        given = self.entries.get("trainable_token_indices") or []
        if isinstance(given, dict):
            given = next((rows for name, rows in given.items() if _named([name], module)), [])
        return list(given)

    def targets(self, module: str) -> bool:
        """Whether products are trained for a module (`target_modules` and what restricts it)."""
        wanted = self.entries.get("target_modules")
        saved = self.entries.get("modules_to_save") or ()
        if _named(self.entries.get("exclude_modules"), module) or not _named(wanted, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in saved):
            return False
        layers = self.entries.get("layers_to_transform")
        if isinstance(wanted, str) or module in (wanted or ()) or layers in (None, []):
            return True
        found = next(filter(None, (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module) for p in self._layer_patterns())), None)
        return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])

    def _layer_patterns(self) -> list[str]:
        given = self.entries.get("layers_pattern") or [r"[^.]*"]
        return [given] if isinstance(given, str) else list(given)

    def _patterned(self, patterns: str, module: str, otherwise: str) -> Any:
        """The entry of the first pattern that fits the end of a module's name, else the entry for all."""
        for pattern, value in (self.entries.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return _DEFAULTS[otherwise] if self.entries.get(otherwise) is None else self.entries[otherwise]

    def expressions(self) -> Iterator[str]:
        """Everything that is used as a regular expression."""
        yield from (str(x) for x in map(self.entries.get, ("target_modules", "exclude_modules")) if isinstance(x, str))
        yield from self._layer_patterns()
        for entry in ("rank_pattern", "alpha_pattern", "modules_to_save"):
            yield from self.entries.get(entry) or ()


def read_config(path: Path) -> AdapterConfig:
    """The configuration of the adapter in a directory.

    Raises CheckpointError: no directory or configuration, a broken one, a kind of adapter that cannot be merged.
    """
    if not os.path.isdir(path):  # False for names that no file can have, too
        raise CheckpointError("no such directory" if not os.path.exists(path) else "this is not a directory", where=str(path),
                              hint=f"an adapter is a directory with {CONFIG} and safetensors")
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"this is not an adapter: it has no {CONFIG}", where=str(path),
                              hint=f"give the directory that holds {CONFIG} and the safetensors")
    entries, where = read_json(path / CONFIG), str(path / CONFIG)
    if entries.get("peft_type") != "LORA":
        raise CheckpointError(f"the adapter is of type {entries.get('peft_type')}", where=where,
                              hint="type LORA can be merged, with rsLoRA and DoRA; merge others with peft's merge_and_unload")
    for entry, reason in _CANNOT.items():
        if entries.get(entry):
            raise CheckpointError(f"it cannot be merged: {reason} ({entry})", where=where)
    start = str(entries.get("init_lora_weights")).lower()
    if _MOVES_BASE.match(start):
        raise CheckpointError(f"the adapter belongs to base weights that its initialisation, {start}, changed", where=where,
                              hint="save it with peft's path_initial_model_for_weight_conversion, which makes it plain LoRA")
    strange = [entry for entry in entries if entries[entry] and entry not in _KNOWN]
    if strange:
        raise CheckpointError(f"it sets {listed(strange)}, and what that does to the weights is not known", where=where,
                              hint="take the entry out if it does nothing, or merge with peft's merge_and_unload")
    for entry, kinds in _TYPES.items():
        if entries.get(entry) is not None and (not isinstance(entries[entry], kinds) or isinstance(entries[entry], bool)):
            raise CheckpointError(f"{entry} is {entries[entry]!r}", where=where)
    for entry, kinds in _INSIDE.items():
        if not all(isinstance(x, kinds) and not isinstance(x, bool) for x in _items(entry, entries.get(entry))):
            raise CheckpointError(f"{entry} is {entries[entry]!r}", where=where)
    config = AdapterConfig(entries)
    for pattern in config.expressions():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise CheckpointError(f"{pattern!r} is no regular expression: {error}", where=where) from None
    return config


def _items(entry: str, value: Any) -> list[Any]:
    """What the list or object of an entry holds; row numbers may stand in lists by module."""
    held = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if entry == "trainable_token_indices":
        return [x for item in held for x in (item if isinstance(item, list) else [item])]
    return held


def _named(names: Any, module: str) -> bool:
    """Whether a module's name is one of a list, or ends in one; or fits a regular expression as a whole."""
    if not names:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)
