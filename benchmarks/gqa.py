"""What merging key and value heads costs: divergence from the original, by method and by how many heads are left.

    python benchmarks/gqa.py CHECKPOINT --text test.npz --calib calib.npz [--sample] [--only NAME ...] [--json FILE]

Every row, METHOD HEADS, is a process of its own. Text and calibration text are chunks of token ids by domain (.npz); with
`--sample`, files that do not exist are made: chunks of 256 tokens sampled from the model itself at temperature 1, seeded. `kl` is
the mean over all predictions of the divergence of the model's from the original's (nats per token), of the torch executor in
float32, and perplexity of the same ones.
"""

import json
import resource
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rows import calibration_chunks, every_chunk, measure_rows

METHODS = {
    "mean": "gqa{kv-heads=HEADS method=mean}",
    "turned": "gqa{kv-heads=HEADS repair=none}",
    "attention": "gqa{kv-heads=HEADS repair=attention}",
    "align": "gqa{kv-heads=HEADS}",
    "align-longer": "gqa{kv-heads=HEADS steps=128}",
    "healed": "gqa{kv-heads=HEADS},heal{steps=200 lr=0.00003}",
}
"""Pipelines by name: neighbours averaged; heads grouped, aligned and merged; their attention fitted, too; and what follows it;
the same with four times the steps; and trained afterwards, for which --calib-tokens should be more."""
BATCH = 1024
"""Tokens of a batch of calibration text, or more where chunks are longer."""


def measured(checkpoint: Path, method: str, heads: int, text: np.ndarray, calibration: np.ndarray) -> dict[str, object]:
    """One row: divergence, perplexities, seconds of the pass, peak bytes, and the receipt's details."""
    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.ir.copy import copy_module
    from ingot.passes.base import Context
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.recipes import TRACE
    from ingot.runtime.evaluate import compare

    original = load(checkpoint)
    run_pipeline(original, parse_pipeline(TRACE))
    module = copy_module(original)
    pipeline = METHODS[method].replace("HEADS", str(heads))
    rows = max(1, BATCH // calibration.shape[1])
    batches = [calibration[i:i + rows] for i in range(0, len(calibration), rows)]
    start = time.process_time()
    receipt = run_pipeline(module, parse_pipeline(pipeline), Context(calibration=batches))[-1]
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pos = np.arange(text.shape[1])[None]
    mine, reference = (Executor(m, keep=True) for m in (module, original))
    found = compare(lambda ids: mine.run({"ids": ids, "pos": pos})[0].numpy(),
                    lambda ids: reference.run({"ids": ids, "pos": pos})[0].numpy(), text)
    return {"checkpoint": checkpoint.name, "method": method, "kv_heads": heads, "pipeline": pipeline, "kl": found.kl.mean,
            "kl_stderr": found.kl.stderr, "top1": found.top1.mean, "perplexity": found.model.perplexity,
            "perplexity_before": found.reference.perplexity, "tokens": found.model.tokens, "cpu_seconds": round(seconds, 1),
            "peak_bytes": peak, "calibration_tokens": int(calibration.size), "parameters": receipt.parameters_after,
            "parameters_before": receipt.parameters_before, "details": receipt.details}


def sampled(checkpoint: Path, out: Path, *, count: int, seed: int) -> None:
    """Write `count` chunks of 256 tokens that the model makes from its first token on, whatever ends a text left in."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    start = torch.full((count, 1), model.config.bos_token_id)
    torch.manual_seed(seed)
    with torch.no_grad():
        ids = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             min_new_tokens=255, max_new_tokens=255, eos_token_id=None, pad_token_id=0)
    np.savez(out, sampled=ids.numpy())


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--text", type=click.Path(path_type=Path), required=True)
@click.option("--calib", type=click.Path(path_type=Path), required=True)
@click.option("--sample", is_flag=True, help="Make text that does not exist by sampling from the model.")
@click.option("--every", default=1, show_default=True, help="Of all chunks in order of the file, every how manyth is measured.")
@click.option("--calib-tokens", default=8192, show_default=True)
@click.option("--only", multiple=True, help="Rows by name: METHOD HEADS.", required=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by name; those of other rows are kept.")
@click.option("--worker", hidden=True)
def main(checkpoint: Path, text: Path, calib: Path, sample: bool, every: int, calib_tokens: int, only: tuple[str, ...],
         out: Path | None, worker: str | None) -> None:
    if worker is not None:
        method, _, heads = worker.rpartition(" ")
        calibration = calibration_chunks(calib)
        print(json.dumps(measured(checkpoint, method, int(heads), every_chunk(text, every),
                                  calibration[:max(1, calib_tokens // calibration.shape[1])])))
        return
    for seed, (path, count) in enumerate({calib: 192, text: 48}.items()):
        if sample and not path.exists():
            sampled(checkpoint, path, count=count, seed=seed)
    measure_rows(only, out, prefix=f"{checkpoint.name} ", show=lambda name, record: (
        f"{checkpoint.name} {name:14} kl {record['kl']:7.4f}  perplexity {record['perplexity']:10.3f} (was "
        f"{record['perplexity_before']:.3f})  {record['cpu_seconds']:7.1f} s  {record['peak_bytes'] / 1e9:5.2f} GB"))


if __name__ == "__main__":
    main()
