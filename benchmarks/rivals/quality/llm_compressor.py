"""llm-compressor: GPTQ and AWQ by `oneshot`."""

import torch
from common import Quantised, float_model, linears, run
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier


def gptq(group: int, *, bits: int = 4, symmetric: bool = True) -> object:
    """Its GPTQ with act order that keeps groups together ("static")."""
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group, actorder="static")
    return GPTQModifier(ignore=["lm_head"], config_groups={"all": QuantizationScheme(targets=["Linear"], weights=args)})


def scheme(name: str) -> object:
    """Its GPTQ in a preset format."""
    return GPTQModifier(ignore=["lm_head"], targets=["Linear"], scheme=name)


def awq(group: int) -> object:
    """Its AWQ, asymmetric."""
    args = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=group)
    return AWQModifier(ignore=["lm_head"], config_groups={"all": QuantizationScheme(targets=["Linear"], weights=args)})


RECIPES = {
    "gptq int4 g64 symmetric": lambda: gptq(64),
    "gptq int4 g64 asymmetric": lambda: gptq(64, symmetric=False),
    "gptq int3 g64 symmetric": lambda: gptq(64, bits=3),
    "gptq nvfp4": lambda: scheme("NVFP4A16"),
    "gptq mxfp4": lambda: scheme("MXFP4A16"),
    "awq int4 g64": lambda: awq(64),
    "smoothquant gptq w8a8": lambda: [SmoothQuantModifier(smoothing_strength=0.8), scheme("W8A8")],
}


def quantise(model_path: str, ids: torch.Tensor, recipe: object) -> Quantised:
    """The weights as its own forward would use them."""
    model = float_model(model_path)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=ids.shape[1], num_calibration_samples=len(ids))
    # Smoothing divides what the norms give.
    norms = {name: module.weight.detach() for name, module in model.named_modules() if name.endswith("norm")}
    return norms | {name: fake_quantised(module) for name, module in linears(model).items()}


def fake_quantised(module: torch.nn.Module) -> torch.Tensor:
    """A weight through its codes."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    args = module.quantization_scheme.weights
    with torch.no_grad():
        return fake_quantize(module.weight, module.weight_scale, getattr(module, "weight_zero_point", None), args,
                             global_scale=getattr(module, "weight_global_scale", None)).float()


if __name__ == "__main__":
    run({name: (lambda path, ids, make=make: quantise(path, ids, make())) for name, make in RECIPES.items()})
