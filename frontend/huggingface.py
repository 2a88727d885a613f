"""Hugging Face models as modules: built without memory from their configuration, weights by handle."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as messages

from ingot.errors import CheckpointError, IngotError, UnsupportedOp
from ingot.frontend import attention
from ingot.frontend.aten.registry import TORCH_DTYPES
from ingot.frontend.buffers import computed_buffers
from ingot.frontend.checkpoint import listed, read_checkpoint
from ingot.frontend.importer import WeightOf
from ingot.frontend.keys import cast_weight, match_keys
from ingot.frontend.modules import import_module
from ingot.frontend.tensors import held
from ingot.ir.module import Module
from ingot.ir.weights import Weight

COMPUTE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
BATCH = (1, 64)
EXPERTS = "batched_mm"
"""How mixtures of experts are traced: the chosen experts' weights are gathered per token, in one step for all tokens."""
OUTPUT_NAMES = {"last_hidden_state": "hidden", "pooler_output": "pooled"}


def load_checkpoint(path: Path, *, dtype: str | None = None, weights: bool = True) -> Module:
    """The module of a checkpoint directory; only headers of the weight files are read.

    dtype: element type of the computation, f32, bf16, f16 or f64; None is f32. Weights stored in another one are
    converted when they are read. weights: False traces the architecture alone. Raises CheckpointError, UnsupportedOp.
    """
    checkpoint = read_checkpoint(path, weights=weights)
    compute = _compute_dtype(dtype)
    model = build(_config(path, checkpoint.config), compute, where=str(path))
    if not weights:
        return import_model(model, name=path.name, source=path.name)
    match = match_keys(model, checkpoint.tensors)
    if match.unexpected:
        warnings.warn(f"{path}: {len(match.unexpected)} tensors are not part of {type(model).__name__} and stay unused: "
                      f"{listed(match.unexpected)}", stacklevel=3)
    tied = _tied(model)
    found = {tied.get(name, name): weight for name, weight in match.found.items()}
    missing: list[str] = []

    def weight_of(name: str, tensor: torch.Tensor) -> Weight:
        if name not in found:
            missing.append(name)
            return held(name, tensor)
        return cast_weight(found[name], TORCH_DTYPES[tensor.dtype])

    module = import_model(model, name=path.name, source=path.name, weight_of=weight_of)
    if missing:
        raise CheckpointError(f"{len(missing)} tensors are missing: {listed(missing)}", where=str(path),
                              hint=f"{type(model).__name__} needs them; the checkpoint is incomplete or of another architecture")
    return module


def build(config: PretrainedConfig, dtype: torch.dtype = torch.float32, *, where: str | None = None) -> PreTrainedModel:
    """The model a configuration describes, on the meta device, in eval mode, its attention ready to be imported.

    Raises CheckpointError when the configuration names no architecture, or one transformers does not have.
    """
    attention.register()
    names = config.architectures or []
    if not names:
        raise CheckpointError("config.json names no architecture", where=where,
                              hint='add it, for example "architectures": ["LlamaForCausalLM"]')
    cls = getattr(transformers, names[0], None)
    if not (inspect.isclass(cls) and issubclass(cls, PreTrainedModel)):
        raise CheckpointError(f"transformers {transformers.__version__} has no architecture {names[0]}", where=where,
                              hint="upgrade transformers, or build the model yourself and use import_module")
    with torch.device("meta"), quiet():
        try:
            model = cls._from_config(config, dtype=dtype, attn_implementation=attention.implementation(cls),
                                     experts_implementation=EXPERTS)
        except Exception as error:
            raise CheckpointError(f"{names[0]} cannot be built from its configuration: {error}", where=where) from error
    return model.eval()  # type: ignore[no-any-return]


@dataclass
class Signature:
    """How a model is called. kind: decoder, encoder or vision; inputs: name -> (the model's keyword, example, axis names)."""

    kind: str
    inputs: dict[str, tuple[str, torch.Tensor, tuple[str | None, ...]]]
    ranges: dict[str, tuple[int, int]]
    outputs: list[str] = field(default_factory=list)


class _Call(torch.nn.Module):
    """Calls a transformers model by the names of the graph's inputs and returns its tensors in order."""

    def __init__(self, model: PreTrainedModel, signature: Signature) -> None:
        super().__init__()
        self.hf = model
        self.signature = signature

    def forward(self, ids: torch.Tensor | None = None, pos: torch.Tensor | None = None, mask: torch.Tensor | None = None,
                types: torch.Tensor | None = None, pixels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        inputs = {"ids": ids, "pos": pos, "mask": mask, "types": types, "pixels": pixels}
        given: dict[str, Any] = {self.signature.inputs[name][0]: x for name, x in inputs.items() if x is not None}
        if self.signature.kind == "decoder":
            given["use_cache"] = False
        found = self.hf(**given, return_dict=True)
        if self.signature.kind == "decoder":
            self.signature.outputs[:] = ["logits"]
            narrow = found.logits.dtype in (torch.bfloat16, torch.float16)
            return (found.logits.float() if narrow else found.logits,)
        kept = [key for key, value in found.items() if isinstance(value, torch.Tensor)]
        self.signature.outputs[:] = [OUTPUT_NAMES.get(key, key) for key in kept]
        return tuple(found[key] for key in kept)


def import_model(model: PreTrainedModel, *, name: str = "model", source: str | None = None,
                 weight_of: WeightOf | None = None) -> Module:
    """The module of a transformers model, in memory or on the meta device.

    A decoder takes ids i64[B, S] and pos i64[B, S] and gives logits [B, S, V]; an encoder takes ids, mask i64[B, S] and,
    where it has token types, types; a vision model takes pixels [B, C, H, W]. Raises UnsupportedOp.
    """
    attention.register()
    signature = signature_of(model)
    buffers = computed_buffers(model) if model.device.type == "meta" else {}
    fallback = weight_of or held

    def handle(key: str, tensor: torch.Tensor) -> Weight:
        if key in buffers:
            return held(key, buffers[key])
        return fallback(key, tensor)

    with _importable(model), attention.one_sequence_per_row(), quiet():
        module = import_module(
            _Call(model, signature), {n: example for n, (_, example, _) in signature.inputs.items()},
            dims={n: axes for n, (_, _, axes) in signature.inputs.items()}, ranges=signature.ranges, name=_plain(name),
            outputs=signature.outputs, weight_of=handle, prefix="hf.")
    config = model.config.get_text_config()
    module.meta |= {"kind": signature.kind, "model_type": model.config.model_type, "architecture": type(model).__name__}
    if "S" in module.dims:
        module.meta["context"] = module.dims["S"][1]
    if signature.kind != "vision" and getattr(config, "vocab_size", None):
        module.meta["vocab"] = int(config.vocab_size)
    module.meta["dtype"] = str(TORCH_DTYPES[model.dtype])
    if source is not None:
        module.meta["source"] = source
    return module


def signature_of(model: PreTrainedModel) -> Signature:
    """How a model is called, from its class, its configuration and the parameters of its forward.

    Raises UnsupportedOp for what takes neither token ids nor pixels, and for encoder-decoder models.
    """
    config = model.config.get_text_config()
    takes = inspect.signature(model.forward).parameters
    device = model.device
    if model.config.is_encoder_decoder:
        raise UnsupportedOp(f"{type(model).__name__} is an encoder-decoder model, which is not supported",
                            hint="import its encoder alone: build it and use import_module")
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        pixels = torch.zeros(2, int(getattr(model.config, "num_channels", 3)), height, width, dtype=model.dtype, device=device)
        return Signature("vision", {"pixels": ("pixel_values", pixels, ("B", None, None, None))}, {"B": BATCH})
    if model.main_input_name != "input_ids":
        raise UnsupportedOp(f"{type(model).__name__} takes {model.main_input_name}, not token ids or pixels",
                            hint="use import_module with example inputs")
    context = _context(model, config)
    example = torch.zeros(2, min(7, context), dtype=torch.int64, device=device)
    axes = ("B", "S")
    inputs: dict[str, tuple[str, torch.Tensor, tuple[str | None, ...]]] = {"ids": ("input_ids", example, axes)}
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        kind = "decoder"
        if "position_ids" in takes:
            inputs["pos"] = ("position_ids", example, axes)
    else:
        kind = "encoder"
        inputs["mask"] = ("attention_mask", torch.ones_like(example), axes)
        if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
            inputs["types"] = ("token_type_ids", example, axes)
    return Signature(kind, inputs, {"B": BATCH, "S": (1, context)})


def _context(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """The longest sequence: of the position table where there is one, else what the configuration says."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 2048


def _config(path: Path, raw: Mapping[str, Any]) -> PretrainedConfig:
    if "auto_map" in raw and raw.get("model_type") not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
        raise CheckpointError("the model's code comes with the checkpoint, and ingot does not run it", where=str(path),
                              hint="build the model yourself and use import_module")
    if "model_type" not in raw:
        raise CheckpointError("config.json names no model_type", where=str(path), hint="this is no transformers configuration")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(f"transformers {transformers.__version__} does not read config.json: {first}",
                                  where=str(path)) from error
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError("the checkpoint is already quantised, which is not supported", where=str(path),
                              hint="start from the unquantised checkpoint")
    return config


def _compute_dtype(dtype: str | None) -> torch.dtype:
    if (dtype or "f32") not in COMPUTE:
        raise IngotError(f"cannot compute in {dtype}", hint=f"dtype is one of {', '.join(COMPUTE)}")
    return COMPUTE[dtype or "f32"]


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of tied tensors -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name)
            for name, tensor in model.named_parameters(remove_duplicate=False)}


@contextmanager
def _importable(model: PreTrainedModel) -> Iterator[None]:
    """The model with the attention and the experts that import best, then as it was."""
    before, experts = model.config._attn_implementation, model.config._experts_implementation
    model.set_attn_implementation(attention.implementation(type(model)))
    if experts is not None:
        model.set_experts_implementation(EXPERTS)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        if experts is not None:
            model.set_experts_implementation(experts)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' advice and progress bars are not about this use."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, messages.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    messages.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            messages.enable_progress_bar()


def _plain(name: str) -> str:
    """A name the text form can carry."""
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return kept if kept[:1].isalpha() or kept[:1] == "_" else f"m_{kept}"


