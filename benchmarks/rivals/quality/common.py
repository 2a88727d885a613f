"""What every quantising rival is given, and what it hands back: weights as its codes would decode them.

    python ROW.py MODEL CALIB.npz OUT --row NAME [--chunks N]

MODEL is a float Hugging Face directory. OUT gets the same model in float32 with the weights a runtime would multiply by, so
that all rivals are measured by one program, and `record.json`: seconds of quantising (of the clock, and of
all cores) and peak bytes.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

Quantised = Mapping[str, torch.Tensor]
"""Weights [out, in] by the names of their linears, and those of other modules that changed."""


def calibration(path: Path, chunks: int) -> torch.Tensor:
    """Token ids i64[chunks, 1024]: the first chunk of every domain, then the second, ..."""
    with np.load(path) as file:
        domains = [file[name] for name in file.files]
    rows = [d[i] for i in range(max(map(len, domains))) for d in domains if i < len(d)]
    return torch.from_numpy(np.stack(rows[:chunks]).astype(np.int64))


def run(rows: Mapping[str, Callable[[str, torch.Tensor], Quantised]]) -> None:
    """Quantise by the asked row and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("calib", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--row", required=True, choices=rows)
    parser.add_argument("--chunks", type=int, default=32, help="calibration chunks of 1,024 tokens")
    args = parser.parse_args()
    ids = calibration(args.calib, args.chunks)
    start, busy = time.perf_counter(), time.process_time()
    weights = rows[args.row](args.model, ids)
    record = {"calibration_tokens": ids.numel(), "seconds": time.perf_counter() - start,
              "cpu_seconds": time.process_time() - busy,
              "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    model = float_model(args.model)
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight)
    model.save_pretrained(args.out)
    record["linears"] = sum(name.endswith("_proj") for name in weights)
    (args.out / "record.json").write_text(json.dumps(record) + "\n")


def float_model(path: str) -> PreTrainedModel:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """What was a linear of a decoder layer, by name."""
    return {name: module for name, module in model.named_modules() if name.endswith("_proj")}
