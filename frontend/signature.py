"""How a Hugging Face model is called: what kind it is, which inputs it takes, how long a sequence may be."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ingot.errors import UnsupportedOp

BATCH = (1, 64)
_OUTPUT_NAMES = {"last_hidden_state": "hidden", "pooler_output": "pooled"}
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_UNKNOWN_CONTEXT = 2048


@dataclass(frozen=True)
class Input:
    """keyword: of the model's forward. example: a tensor to trace with. axes: names of the dims that may change."""

    keyword: str
    example: torch.Tensor
    axes: tuple[str | None, ...]


@dataclass(frozen=True)
class Signature:
    """kind: decoder, encoder or vision. inputs: by their names in the graph. ranges: of the dims. outputs: filled by a call."""

    kind: str
    inputs: dict[str, Input]
    ranges: dict[str, tuple[int, int]]
    outputs: list[str] = field(default_factory=list)


class Call(torch.nn.Module):
    """Calls a transformers model (`hf`) by the names of the graph's inputs and returns its tensors in order."""

    def __init__(self, model: PreTrainedModel, signature: Signature) -> None:
        super().__init__()
        self.hf = model
        self.signature = signature

    def forward(self, ids: torch.Tensor | None = None, pos: torch.Tensor | None = None, mask: torch.Tensor | None = None,
                types: torch.Tensor | None = None, pixels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        inputs = {"ids": ids, "pos": pos, "mask": mask, "types": types, "pixels": pixels}
        given: dict[str, Any] = {self.signature.inputs[name].keyword: x for name, x in inputs.items() if x is not None}
        if self.signature.kind == "decoder":
            logits = self.hf(**given, return_dict=True, use_cache=False).logits
            self.signature.outputs[:] = ["logits"]
            return (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits,)
        found = {key: value for key, value in self.hf(**given, return_dict=True).items() if isinstance(value, torch.Tensor)}
        self.signature.outputs[:] = [_OUTPUT_NAMES.get(str(key), str(key)) for key in found]
        return tuple(found.values())


def signature_of(model: PreTrainedModel) -> Signature:
    """From the model's class, its configuration and the parameters of its forward.

    Raises UnsupportedOp for what takes neither token ids nor pixels, and for encoder-decoder models.
    """
    config = model.config.get_text_config()
    takes = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder:
        raise UnsupportedOp(f"{type(model).__name__} is an encoder-decoder model, which is not supported",
                            hint="import its encoder alone: build it and use import_module")
    if model.main_input_name == "pixel_values":
        return _vision(model)
    if model.main_input_name != "input_ids":
        raise UnsupportedOp(f"{type(model).__name__} takes {model.main_input_name}, not token ids or pixels",
                            hint="use import_module with example inputs")
    context = _context(model, config)
    tokens = torch.zeros(2, min(7, context), dtype=torch.int64, device=model.device)
    axes = ("B", "S")
    inputs = {"ids": Input("input_ids", tokens, axes)}
    decoder = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if decoder and "position_ids" in takes and _padded_positions(model) is None:
        inputs["pos"] = Input("position_ids", tokens, axes)
    if not decoder:
        inputs["mask"] = Input("attention_mask", torch.ones_like(tokens), axes)
        if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
            inputs["types"] = Input("token_type_ids", tokens, axes)
    return Signature("decoder" if decoder else "encoder", inputs, {"B": BATCH, "S": (1, context)})


def _vision(model: PreTrainedModel) -> Signature:
    size = getattr(model.config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    pixels = torch.zeros(2, int(getattr(model.config, "num_channels", 3)), height, width, dtype=model.dtype, device=model.device)
    return Signature("vision", {"pixels": Input("pixel_values", pixels, ("B", None, None, None))}, {"B": BATCH})


def _context(model: PreTrainedModel, config: PreTrainedConfig) -> int:
    """The longest sequence: what the position table holds behind its padding row, else what the configuration says.

    A rope that changes its frequencies beyond some length is imported with those it has up to there.
    """
    table = _padded_positions(model)
    if table is not None and table.padding_idx is not None:
        return table.num_embeddings - table.padding_idx - 1
    known = [getattr(config, name) for name in _CONTEXT_NAMES if isinstance(getattr(config, name, None), int)]
    context = int(known[0]) if known else _UNKNOWN_CONTEXT
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(p for p in rope.values() if isinstance(p, dict))):
        if changes_with_length(parameters.get("rope_type")):
            context = min(context, parameters.get("original_max_position_embeddings") or context)
    return context


def _padded_positions(model: PreTrainedModel) -> torch.nn.Embedding | None:
    """The position table of models that count positions from behind its padding row (RoBERTa)."""
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            return module
    return None


def changes_with_length(rope_type: object) -> bool:
    """Whether a rope of this type has other frequencies for longer sequences."""
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")
