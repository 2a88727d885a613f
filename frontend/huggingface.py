"""Hugging Face models as modules: traced without memory, weights by handle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ingot.errors import CheckpointError, IngotError, listed
from ingot.frontend.architecture import build, configuration, importable
from ingot.frontend.aten.registry import TORCH_DTYPES
from ingot.frontend.attention import MaskOpened
from ingot.frontend.buffers import computed_buffers
from ingot.frontend.checkpoint import read_checkpoint
from ingot.frontend.importer import WeightOf
from ingot.frontend.keys import cast_weight, match_keys
from ingot.frontend.modules import first_names, import_module
from ingot.frontend.quantized.coded import CodedWeight, place_codes
from ingot.frontend.quantized.reader import weights_of
from ingot.frontend.signature import Call, signature_of
from ingot.frontend.tensors import held
from ingot.ir.module import Module
from ingot.ir.weights import Weight

COMPUTE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}


def load_checkpoint(path: Path, *, dtype: str | None = None, weights: bool = True) -> Module:
    """The module of a checkpoint directory; only headers of the weight files are read.

    dtype: element type of the computation, f32, bf16, f16 or f64; None is f32. Weights stored in another one are
    converted when they are read. weights: False traces the architecture alone. Warns of tensors the model does not use.
    Raises CheckpointError, UnsupportedOp, IngotError.
    """
    if (dtype or "f32") not in COMPUTE:
        raise IngotError(f"cannot compute in {dtype}", hint=f"dtype is one of {', '.join(COMPUTE)}")
    checkpoint = read_checkpoint(path, weights=weights)
    model = build(configuration(path, checkpoint.config), COMPUTE[dtype or "f32"], where=str(path))
    if not weights:
        return import_model(model, name=path.name, source=path.name)
    match = match_keys(model, weights_of(checkpoint))
    if match.unexpected:
        warnings.warn(f"{path}: {len(match.unexpected)} tensors are no part of {type(model).__name__} and stay unused: "
                      f"{listed(match.unexpected)}", stacklevel=3)
    found = _by_first_name(model, match.found)
    missing: list[str] = []

    def weight_of(name: str, tensor: torch.Tensor) -> Weight:
        if name not in found:
            missing.append(name)
            return held(name, tensor)
        weight, floats = found[name], TORCH_DTYPES[tensor.dtype]
        return replace(weight, type=weight.type.with_dtype(floats)) if isinstance(weight, CodedWeight) else \
            cast_weight(weight, floats)

    module = import_model(model, name=path.name, source=path.name, weight_of=weight_of)
    if missing:
        raise CheckpointError(f"{len(missing)} tensors are missing: {listed(missing)}", where=str(path),
                              hint=f"{type(model).__name__} needs them; the checkpoint is incomplete or of another architecture")
    place_codes(module)
    return module


def tied_names(path: Path) -> dict[str, str]:
    """Names of parameters that the configuration in a directory ties to others, and those others. Raises CheckpointError."""
    model = build(configuration(path, read_checkpoint(path, weights=False).config), where=str(path))
    return {name: first for name, first in first_names(model).items() if name != first}


def import_model(model: PreTrainedModel, *, name: str = "model", source: str | None = None,
                 weight_of: WeightOf | None = None) -> Module:
    """The module of a transformers model, in memory or on the meta device.

    A decoder takes ids i64[B, S] and pos i64[B, S] (not where its forward takes no positions) and gives logits
    [B, S, V], at least f32; an encoder takes ids, mask i64[B, S] and, where it has several token types, types, and gives
    hidden [B, S, D] and whatever else the class returns; a vision model takes pixels [B, C, H, W].
    Raises UnsupportedOp, CheckpointError.
    """
    signature = signature_of(model)
    buffers = computed_buffers(model) if model.device.type == "meta" else {}
    fallback = weight_of or held

    def handle(key: str, tensor: torch.Tensor) -> Weight:
        return held(key, buffers[key]) if key in buffers else fallback(key, tensor)

    def trace(mask_tensors: bool) -> Module:
        with importable(model, mask_tensors=mask_tensors):
            return import_module(
                Call(model, signature), {n: x.example for n, x in signature.inputs.items()},
                dims={n: x.axes for n, x in signature.inputs.items()}, ranges=signature.ranges, name=_plain(name),
                outputs=signature.outputs, weight_of=handle, prefix="hf.")

    try:
        module = trace(mask_tensors=False)
    except MaskOpened:
        module = trace(mask_tensors=True)
    module.meta |= {"kind": signature.kind, "model_type": model.config.model_type, "architecture": type(model).__name__,
                    "dtype": str(TORCH_DTYPES[model.dtype])}
    if "S" in module.dims:
        module.meta["context"] = module.dims["S"][1]
        module.meta["vocab"] = int(model.config.get_text_config().vocab_size)
    if source is not None:
        module.meta["source"] = source
    return module


def _by_first_name(model: PreTrainedModel, found: Mapping[str, Weight]) -> dict[str, Weight]:
    """Handles under the first name of each tensor. Tied tensors that the checkpoint stores with other numbers are untied."""
    out = dict(found)
    first: dict[int, str] = {}
    for name, tensor in list(model.named_parameters(remove_duplicate=False)):
        place = first.setdefault(id(tensor), name)
        if place == name or name not in found:
            continue
        if place in out and not np.array_equal(out[place].materialize(), found[name].materialize()):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, torch.nn.Parameter(torch.empty_like(tensor)))
        else:
            out[place] = out.pop(name)
    return out


def _plain(name: str) -> str:
    """A name the text form can carry."""
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "_" for c in name)
    return kept if kept[:1].isalpha() or kept[:1] == "_" else f"m_{kept}"
