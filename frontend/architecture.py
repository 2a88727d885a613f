"""Hugging Face architectures: configurations read, models built without memory, and made ready to be traced."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as messages

from ingot.errors import CheckpointError
from ingot.frontend import attention
from ingot.frontend.signature import changes_with_length

MOST = {"layer": 4096, "layers": 4096, "labels": 1 << 20}
"""Greatest number by the end of its key: configurations are data, and transformers makes an object for each of so many."""

EXPERTS = "batched_mm"
"""How mixtures of experts are traced: the chosen experts' weights are gathered per token, in one step for all tokens."""


def configuration(path: Path, raw: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration in a checkpoint directory whose config.json is `raw`.

    Raises CheckpointError for one transformers does not know, or that brings code of its own.
    """
    where = str(path)
    if not isinstance(raw.get("model_type"), str):
        raise CheckpointError("config.json names no model_type", where=where, hint="this is no transformers configuration")
    if raw["model_type"] not in CONFIG_MAPPING:
        brings = "the model's code comes with the checkpoint, and ingot does not run it" if "auto_map" in raw else \
            f"transformers {transformers.__version__} does not know the model type {raw['model_type']}"
        raise CheckpointError(brings, where=where, hint="build the model yourself and use import_module")
    if excess := _excess(raw):
        raise CheckpointError(f"in config.json {excess}", where=where)
    with quiet():
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(f"transformers {transformers.__version__} does not read config.json: {first_line(error)}",
                                  where=where) from error
    vars(config).pop("quantization_config", None)  # the architecture is the same; what codes mean is read apart
    return config


def _excess(raw: Mapping[str, Any]) -> str:
    """The first number of a configuration that is greater than any model's (see MOST), "" when there is none."""
    pending: list[tuple[str, Any]] = [("", raw)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.items()
        for end, most in MOST.items():
            if key.endswith(end) and isinstance(value, int) and value > most:
                return f"{key} is {value:,}; at most {most:,} is supported"
    return ""


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, *, where: str | None = None) -> PreTrainedModel:
    """The model a configuration describes, on the meta device, in eval mode, its attention ready to be imported.

    Raises CheckpointError when the configuration names no architecture, or one transformers does not have.
    """
    attention.register()
    names = config.architectures
    if not isinstance(names, list | tuple) or not names or not isinstance(names[0], str):
        raise CheckpointError("config.json names no architecture", where=where,
                              hint='add it, for example "architectures": ["LlamaForCausalLM"]')
    cls = getattr(transformers, names[0], None)
    if not (inspect.isclass(cls) and issubclass(cls, PreTrainedModel)):
        raise CheckpointError(f"transformers {transformers.__version__} has no architecture {names[0]}", where=where,
                              hint="upgrade transformers, or build the model yourself and use import_module")
    with torch.device("meta"), quiet():
        try:
            model: PreTrainedModel = cls._from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation=attention.implementation(cls), experts_implementation=EXPERTS)
        except Exception as error:
            raise CheckpointError(f"{names[0]} cannot be built from its configuration: {first_line(error)}",
                                  where=where) from error
    model.eval()  # type: ignore[no-untyped-call]
    return model


@contextmanager
def importable(model: PreTrainedModel, *, mask_tensors: bool = False) -> Iterator[None]:
    """The model with the attention, the experts and the rope that import best, then as it was.

    mask_tensors: for a model that computes on its attention mask.
    """
    attention.register()
    before, experts = model.config._attn_implementation or "eager", model.config._experts_implementation
    with ExitStack() as stack, quiet(), attention.one_sequence_per_row():
        model.set_attn_implementation(attention.implementation(type(model), tensors=mask_tensors))
        stack.callback(model.set_attn_implementation, before)
        if experts is not None:
            model.set_experts_implementation(EXPERTS)
            stack.callback(model.set_experts_implementation, experts)
        for module in model.modules():
            kind = getattr(module, "rope_type", None)
            kinds = kind if isinstance(kind, dict) else {"": kind}
            if any(map(changes_with_length, kinds.values())):  # the frequencies it has now stay: see signature._context
                fixed = {name: "default" if changes_with_length(k) else k for name, k in kinds.items()}
                stack.enter_context(patch.object(module, "rope_type", fixed if isinstance(kind, dict) else fixed[""]))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' advice and progress bars are not about this use."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, messages.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    messages.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            messages.enable_progress_bar()  # type: ignore[no-untyped-call]


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
