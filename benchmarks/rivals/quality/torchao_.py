"""torchao: int4 groups to nearest, with HQQ's search of scales."""

import torch
from common import Quantised, float_model, linears, run
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup


def intx(path: str, ids: torch.Tensor, *, group: int, algorithm: str) -> Quantised:
    """Weights decoded again. It takes no calibration text."""
    model = float_model(path)
    names = linears(model)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group), intx_choose_qparams_algorithm=algorithm)
    quantize_(model, config, filter_fn=lambda module, name: name in names)
    return {name: module.weight.dequantize().detach().float() for name, module in linears(model).items()}


if __name__ == "__main__":
    run({"rtn int4 g64": lambda path, ids: intx(path, ids, group=64, algorithm="affine"),
         "hqq int4 g64": lambda path, ids: intx(path, ids, group=64, algorithm="hqq_scale_only")})
