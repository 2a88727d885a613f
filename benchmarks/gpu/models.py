"""Models of well-known shapes with random weights: through ingot's frontend from a configuration, and in transformers."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ingot
from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.packing import Form
from ingot.backends.triton.uploads import Uploads
from ingot.ir.formats import Format, format_named
from ingot.ir.module import Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.text import parse_module, print_module
from ingot.ir.value import Const
from ingot.ir.weights import UnknownWeight
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.quantization.scheme import Scheme
from ingot.passes.recipes import recipe

LLAMA3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0,
                     "tie_word_embeddings": True},
    "llama-3.2-1b": {**LLAMA3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "llama-3.1-8b": {**LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
}
"""Arguments of LlamaConfig, from the models' own configurations."""
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
                        "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": True}
GROUP = 128
TRACED = Path(__file__).parent / "traced"


@dataclass(frozen=True)
class Shape:
    """A model's configuration. parameters: how many numbers its linears and tables hold."""

    name: str
    arguments: dict[str, Any]

    def config(self) -> Any:
        from transformers import LlamaConfig

        config = LlamaConfig(**self.arguments)
        config.architectures = ["LlamaForCausalLM"]
        return config


def decoder(shape: Shape, *, weights: str) -> Module:
    """The cached decoder of a shape in bf16, without weights. weights: bf16, the format of the linears' codes, or that and the
    format of their inputs: mxfp4+mxfp8."""
    file = TRACED / f"{shape.name}.ir.gz"
    module = parse_module(gzip.decompress(file.read_bytes()).decode(), filename=file.name) if file.exists() else trace(shape)
    if weights != "bf16":
        fmt, _, inputs = weights.partition("+")
        # Codes are multiplied by codes where a row of the weight has one step, or as many as the input has.
        in_codes(module, format_named(fmt), group=0 if inputs else GROUP)
        if inputs:
            run_pipeline(module, parse_pipeline(f"quantize-inputs{{format={inputs}}},clean"))
    return module


def trace(shape: Shape) -> Module:
    """The decoder of a shape as transformers has it. This alone, and the rival, need transformers."""
    with tempfile.TemporaryDirectory() as folder:
        config = shape.config()
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        module = ingot.load(folder, dtype="bf16", weights=False)
    ingot.optimize(module, recipe("gpu-bf16"))
    return module


def keep_traced(shape: Shape) -> Path:
    """Writes what `decoder` then reads, for a machine without transformers; the file."""
    TRACED.mkdir(parents=True, exist_ok=True)
    file = TRACED / f"{shape.name}.ir.gz"
    file.write_bytes(gzip.compress(print_module(trace(shape)).encode(), mtime=0))
    return file


def in_codes(module: Module, fmt: Format, *, group: int) -> None:
    """Every linear over a weight of its own over codes instead; only what is known by type changes. group: the most elements
    under a step, 0 for a row."""
    func = module.main
    for op in [op for op in func.ops if isinstance(op, Linear)]:
        const = op.w
        if not isinstance(const, Const) or any(isinstance(user, Embedding) for user in const.users):
            continue
        rows, columns = const.type.shape
        fitting = [g for g in fmt.groups if 0 < g <= group and columns % g == 0]
        scheme = Scheme(fmt, max(fitting, default=0), symmetric=True)
        parts = {part: UnknownWeight(type, "random()") for part, type in scheme.types((rows, columns)).items()}
        scheme.place(func, const, [op], parts)
    func.drop_dead()


class RandomUploads(Uploads):
    """Weights made on the device: numbers of a size that keeps activations of the same size from layer to layer."""

    def made(self, const: Const) -> torch.Tensor:
        shape, dtype = const.type.shape, torch_dtype(const.type.dtype)
        if len(shape) < 2:
            return torch.ones(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, dtype=dtype, device=self.device) / shape[-1] ** 0.5

    def made_of(self, form: Form, parts: tuple[Const | None, ...]) -> torch.Tensor:
        packed = parts[0]
        assert packed is not None
        shape = form.shape(*packed.type.shape)
        if form.part == "words":
            return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=self.device)
        if form.part == "table":
            empty = np.zeros((1, 1), np.uint8)
            return torch.from_numpy(form.make(empty, empty.astype(np.float32)))
        if form.part == "steps" and form.bytes:
            # Of every byte the step 1: 0x38 in e4m3, 0x7f in e8m0.
            one = 0x38 if form.bytes == "f8e4m3" else 0x7F
            return torch.full(shape, one * 0x01010101, dtype=torch.int32, device=self.device)
        size = 1.0 / format_named(form.format).peak / packed.type.shape[1] ** 0.5
        return torch.full(shape, 8.0 if form.part == "zeros" else size, device=self.device)


def in_transformers(shape: Shape, device: torch.device) -> Any:
    """The same shape as a transformers model in bf16 with random weights on a device."""
    from transformers import LlamaForCausalLM

    with torch.device(device):
        model = LlamaForCausalLM(shape.config()).to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
