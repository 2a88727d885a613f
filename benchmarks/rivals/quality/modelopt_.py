"""NVIDIA's modelopt: AWQ, its formats by round to nearest, and NVFP4 with AWQ."""

import copy

import modelopt.torch.quantization as mtq
import torch
from common import Quantised, float_model, linears, run


def quantise(path: str, ids: torch.Tensor, config: dict) -> Quantised:
    """Fake-quantised weights, with the factor of their inputs folded back in."""
    model = float_model(path)

    def forward(model: torch.nn.Module) -> None:
        for row in ids:
            model(row[None])

    mtq.quantize(model, copy.deepcopy(config), forward)
    found = {}
    for name, module in linears(model).items():
        weight = module.weight_quantizer(module.weight.detach()).detach().float()
        factor = getattr(module.input_quantizer, "pre_quant_scale", None)
        found[name] = weight if factor is None else weight * factor.float()
    return found


if __name__ == "__main__":
    run({"awq int4 g128": lambda path, ids: quantise(path, ids, mtq.INT4_AWQ_CFG),
         "nvfp4 awq": lambda path, ids: quantise(path, ids, mtq.NVFP4_AWQ_LITE_CFG),
         "mxfp4": lambda path, ids: quantise(path, ids, mtq.MXFP4_DEFAULT_CFG)})
