"""GPTQModel: its default GPTQ."""

import tempfile

import torch
from common import Quantised, linears, run
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def gptq(path: str, ids: torch.Tensor, *, bits: int, group: int) -> Quantised:
    """Quantised, saved, loaded again with its torch kernels, and decoded by those."""
    model = GPTQModel.load(path, QuantizeConfig(bits=bits, group_size=group, device="cpu"))
    model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids], batch_size=1,
                   backend=BACKEND.TORCH)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        loaded = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu").model
        return {name: module.dequantize_weight().T.float() for name, module in linears(loaded).items()}


if __name__ == "__main__":
    run({"gptq int4 g128 symmetric": lambda path, ids: gptq(path, ids, bits=4, group=128),
         "gptq int4 g64 symmetric": lambda path, ids: gptq(path, ids, bits=4, group=64),
         "gptq int3 g64 symmetric": lambda path, ids: gptq(path, ids, bits=3, group=64)})
