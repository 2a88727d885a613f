"""Tiny random models of many architectures, the same in every environment that has torch and transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WIDTH = 32
DECODER: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {k: v for k, v in DECODER.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}
IMAGES: dict[str, Any] = {"image_size": 32, "num_labels": 5}

TABLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama mha": ("LlamaConfig", "LlamaForCausalLM", DECODER | {"num_key_value_heads": 4}),
    "llama gqa": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "qwen3 gqa": ("Qwen3Config", "Qwen3ForCausalLM", DECODER | {"head_dim": 8}),
    "gemma2 gqa": ("Gemma2Config", "Gemma2ForCausalLM", DECODER | {
        "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}),
    "phi3 gqa, fused": ("Phi3Config", "Phi3ForCausalLM", DECODER),
    "phi3 mha, fused": ("Phi3Config", "Phi3ForCausalLM", DECODER | {"num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {k: v for k, v in DECODER.items() if k != "num_key_value_heads"}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": 96, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        "vocab_size": 96, "hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH}),
    "bert": ("BertConfig", "BertForSequenceClassification", ENCODER | {"num_labels": 5}),
    "vit": ("ViTConfig", "ViTForImageClassification", {
        k: v for k, v in ENCODER.items() if k not in ("vocab_size", "max_position_embeddings", "pad_token_id")} | IMAGES
        | {"patch_size": 8}),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", IMAGES | {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}),
    "mobilenet_v2": ("MobileNetV2Config", "MobileNetV2ForImageClassification", IMAGES | {
        "depth_multiplier": 0.25, "min_depth": 4, "depth_divisible_by": 4}),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", IMAGES | {
        "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
}
"""name -> (configuration class, model class, its arguments)."""
NAMES = (*TABLE, "densenet", "grouped conv")
HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads", "v_proj": "num_key_value_heads",
         "query": "num_attention_heads", "key": "num_attention_heads", "value": "num_attention_heads",
         "qkv_proj": "num_attention_heads", "query_key_value": "num_attention_heads", "c_attn": "num_attention_heads"}
"""The field of a configuration that says how many heads the linear of a name makes."""


@dataclass(frozen=True)
class Example:
    """A model in eval mode, its example inputs by name, and the layer that makes its output."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    output: str

    def run(self, model: nn.Module | None = None) -> torch.Tensor:
        """What the model, or a changed one in its place, makes of the inputs."""
        found = (model or self.model)(**self.inputs)
        return found if isinstance(found, torch.Tensor) else found.logits

    def heads(self) -> dict[str, int]:
        """How many heads each linear of an attention makes, by its name."""
        config = getattr(self.model, "config", None)
        found: dict[str, int] = {}
        for name, part in self.model.named_modules():
            field = HEADS.get(name.rpartition(".")[2])
            if config is not None and field is not None and len(list(part.parameters(recurse=False))):
                found[name] = getattr(config, field, None) or config.num_attention_heads
        return found


def example(name: str) -> Example:
    """A model of NAMES with seeded weights that are not at their initial ones and zeros."""
    torch.manual_seed(0)
    if name in TABLE:
        import transformers

        config_name, model_name, arguments = TABLE[name]
        config = getattr(transformers, config_name)(**arguments)
        config._attn_implementation = "eager"
        model = getattr(transformers, model_name)(config)
    else:
        model = Densenet() if name == "densenet" else GroupedConv()
    for key, tensor in model.eval().state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn_like(tensor)
            tensor.copy_(1 + noise.abs() * 0.3 if key.endswith("running_var") else tensor + noise * 0.1)
    if hasattr(model, "config") and hasattr(model.config, "vocab_size"):
        ids = torch.randint(3, 96, (2, 9))
        inputs = {"input_ids": ids} | ({"use_cache": False} if getattr(model, "lm_head", None) or "GPT" in model_name else {})
    else:
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    last = [n for n, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    return Example(model, inputs, "lm_head" if hasattr(model, "lm_head") else last)


class Dense(nn.Module):
    """A layer of a dense block (Huang et al. 2017): what it makes of its input stands beside that input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class Densenet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Sequential(Dense(8, 4), Dense(12, 4))
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
        self.block2 = nn.Sequential(Dense(8, 4), Dense(12, 4))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.block2(self.transition(self.block1(self.stem(pixel_values))))
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


class GroupedConv(nn.Module):
    """A convolution of two groups between others, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm, self.out, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(pixel_values))
        return self.head((self.out(torch.relu(self.norm(self.grouped(x)))) + x).mean((2, 3)))
