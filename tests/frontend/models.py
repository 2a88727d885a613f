"""Tiny random transformers models of every architecture the tests know, seeded, on the CPU in float32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

VOCAB = 96

_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}

TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    # decoders
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", _DECODER | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _DECODER | _ALTERNATING | {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _DECODER | _ALTERNATING | {"head_dim": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _DECODER),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _DECODER),
    "granite": ("GraniteConfig", "GraniteForCausalLM", _DECODER | {
        "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", _DECODER | {"no_rope_layers": [1, 0]}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", _DECODER | {"sliding_window": 4}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", _DECODER),
    # encoders
    "bert": ("BertConfig", "BertModel", _ENCODER),
    "roberta": ("RobertaConfig", "RobertaModel", _ENCODER | {"pad_token_id": 1, "type_vocab_size": 1}),
    "mpnet": ("MPNetConfig", "MPNetModel", _ENCODER | {"pad_token_id": 1}),
    "distilbert": ("DistilBertConfig", "DistilBertModel", {
        "vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}),
    # vision
    "resnet": ("ResNetConfig", "ResNetForImageClassification", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 5,
        "image_size": 32}),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", {
        "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 5, "image_size": 32}),
    "vit": ("ViTConfig", "ViTForImageClassification", {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 8, "num_labels": 5}),
}
"""name -> (configuration class, model class, its arguments)."""

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "olmo2", "granite", "smollm3",
            "starcoder2", "stablelm")
ENCODERS = ("bert", "roberta", "mpnet", "distilbert")
VISION = ("resnet", "convnext", "vit")


def tiny(name: str, **changes: Any) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """A tiny model in eval mode with seeded weights that are not at their initial ones and zeros; `changes` to its arguments."""
    config_name, model_name, arguments = TABLE[name]
    config = getattr(transformers, config_name)(**(arguments | changes))
    config.architectures = [model_name]
    config._attn_implementation = "eager"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_name)(config).eval()
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(1 + noise.abs() * 0.3 if key.endswith("running_var") else tensor + noise * 0.1)
    return config, model


def saved(model: PreTrainedModel, path: Path, **options: Any) -> Path:
    """The checkpoint directory of a model, written to `path`."""
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    model.save_pretrained(path, **options)
    return path
