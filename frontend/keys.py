"""Which tensors of a checkpoint make which parameter of a model: transformers' own renamings and conversions, run lazily."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ingot.errors import CheckpointError
from ingot.frontend.aten.registry import TORCH_DTYPES
from ingot.frontend.tensors import array_of, tensor_of
from ingot.ir.types import DType, TensorType
from ingot.ir.weights import DerivedWeight, FileWeight, Weight, call

_FORMER_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Tensors that older checkpoints store and models now compute."""


@dataclass(frozen=True)
class Match:
    """found: parameter name -> handle, in the checkpoint's element type. unexpected: keys that fit no parameter."""

    found: dict[str, Weight]
    unexpected: list[str]


def match_keys(model: PreTrainedModel, tensors: Mapping[str, FileWeight]) -> Match:
    """Every tensor of the checkpoint under the name the model gives it.

    Raises CheckpointError when a conversion does not fit the tensors, or a shape is not the model's.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    wanted = model.state_dict()
    found: dict[str, Weight] = {}
    groups: dict[str, list[tuple[str, FileWeight]]] = {}
    unexpected: list[str] = []
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        if name not in wanted:
            unexpected.append(key)
        elif pattern is None:
            found[name] = tensors[key]
        else:
            groups.setdefault(name, []).append((pattern, tensors[key]))
    for name, parts in groups.items():
        found |= _convert(model, name, by_pattern[parts[0][0]], parts)
    for name, weight in found.items():
        if name in wanted and tuple(wanted[name].shape) != weight.type.shape:
            raise CheckpointError(f"{weight.origin} is {list(weight.type.shape)}, the configuration makes {name} "
                                  f"{list(wanted[name].shape)}", hint="config.json and the weights are of different models")
    ignored = [re.compile(p) for p in (*(model._keys_to_ignore_on_load_unexpected or ()), *_FORMER_BUFFERS)]
    return Match(found, [key for key in unexpected if not any(p.search(key) for p in ignored)])


def cast_weight(weight: Weight, dtype: DType) -> Weight:
    """The same numbers in another element type, converted when asked for."""
    if weight.type.dtype == dtype:
        return weight
    source = weight.origin.removesuffix(")") + f', from="{weight.type.dtype}")'
    return DerivedWeight(weight.type.with_dtype(dtype), _Cast(dtype), (weight,), source)


@dataclass(frozen=True)
class _Cast:
    dtype: DType

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.dtype.numpy)


def _convert(model: PreTrainedModel, name: str, converter: WeightConverter,
             parts: list[tuple[str, FileWeight]]) -> dict[str, Weight]:
    """The results of one conversion, each recomputed from the file when asked for; shapes come from a run without numbers."""
    def run(tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        fresh = deepcopy(converter)
        for (pattern, weight), tensor in zip(parts, tensors):
            fresh.add_tensor(name, weight.key, pattern, tensor)  # type: ignore[arg-type]
        made: dict[str, Any] = fresh.convert(name, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    kinds = {dtype: t for t, dtype in TORCH_DTYPES.items()}
    try:
        shapes = run([torch.empty(w.type.shape, dtype=kinds[w.type.dtype], device="meta") for _, w in parts])
    except Exception as error:
        raise CheckpointError(f"{parts[0][1].key} cannot be turned into {name}: {error}",
                              hint="config.json and the weights are of different models") from error

    def result(key: str, like: torch.Tensor) -> Weight:
        def compute(*arrays: np.ndarray) -> np.ndarray:
            return array_of(run([tensor_of(a) for a in arrays])[key])

        type_ = TensorType(TORCH_DTYPES[like.dtype], tuple(like.shape))
        first = parts[0][1]
        return DerivedWeight(type_, compute, tuple(w for _, w in parts),
                             call("safetensors", file=first.path.name, key=first.key, into=key))

    return {key: result(key, like) for key, like in shapes.items()}
