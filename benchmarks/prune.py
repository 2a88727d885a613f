"""What taking parts out of a decoder costs: perplexity by method and by how much of attention and MLPs goes.

    python benchmarks/prune.py CHECKPOINT --text test.npz --calib calib.npz [--every 4] [--only NAME ...] [--json FILE]

Every row is a process of its own. Text and calibration text are chunks of token ids by domain (.npz). Perplexity is of the torch
executor in float32: exp of the mean cross-entropy of all next-token predictions. `removed` is the part of the parameters of all
blocks (attention, MLPs and their norms) that is gone.
"""

import json
import resource
import time
from pathlib import Path

import click
import numpy as np
from rows import calibration_chunks, every_chunk, measure_rows

METHODS = {
    "original": "",
    "magnitude": "prune{what=mlp ratio=PART importance=magnitude repair=none uniform=true}",
    "wanda-sp": "prune{what=mlp ratio=PART importance=wanda repair=none uniform=true}",
    "wanda-sp fitted": "prune{what=mlp ratio=PART importance=wanda uniform=true}",
    "taylor": "prune{what=mlp ratio=PART importance=taylor repair=none uniform=true}",
    "flap": "prune{what=mlp ratio=PART importance=flap repair=mean}",
    "flap kv": "prune{what=mlp+kv ratio=WHOLE importance=flap repair=mean}",
    "depth": "prune{what=layers ratio=WHOLE repair=none}",
    "ours uniform": "prune{what=mlp ratio=PART uniform=true}",
    "ours": "prune{what=mlp ratio=PART}",
    "ours all": "prune{what=mlp ratio=PART repair=all}",
    "ours kv": "prune{what=mlp+kv ratio=WHOLE}",
    "ours kv all": "prune{what=mlp+kv ratio=WHOLE repair=all}",
}
"""Pipelines by name; WHOLE is the part of the blocks' parameters to go, PART what that is of the MLPs' alone. wanda-sp and flap
(ranked over all layers, biases compensating) as An et al. 2023, arXiv 2312.11983, taylor as the rule of LLM-Pruner; wanda-sp
fitted is that choice with our repair, which tells choice and repair apart."""
RATIOS = (10, 20, 30)


def block_parameters(module: object) -> tuple[int, int]:
    """Elements of all weights of the blocks, and of the linears of their MLPs, of a module that was not pruned yet."""
    from ingot.passes.pruning.coupling import Coupling
    from ingot.passes.pruning.depth import blocks
    from ingot.passes.pruning.groups import groups

    main = module.main  # type: ignore[attr-defined]
    mlp = {const for group in groups(Coupling(main), kinds=("mlp",)) for const, _ in group.members}
    return sum(block.parameters for block in blocks(main)), sum(int(np.prod(const.type.shape)) for const in mlp)


def measured(checkpoint: Path, method: str, percent: int, text: np.ndarray, calibration: np.ndarray) -> dict[str, object]:
    """One row: perplexity, the part that is gone, seconds of the pass, peak bytes, and the receipt's details."""
    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.passes.base import Context
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.pruning.depth import blocks
    from ingot.passes.recipes import TRACE
    from ingot.runtime.evaluate import perplexity

    module = load(checkpoint)
    run_pipeline(module, parse_pipeline(TRACE))
    whole, mlp = block_parameters(module)
    ratio = percent / 100
    pipeline = METHODS[method].replace("WHOLE", f"{ratio:.4f}").replace("PART", f"{ratio * whole / mlp:.4f}")
    start = time.process_time()
    stages = parse_pipeline(pipeline) if pipeline else []
    receipts = run_pipeline(module, stages, Context(calibration=[row[None] for row in calibration]))
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    executor = Executor(module, keep=True)
    pos = np.arange(text.shape[1])[None]
    found = perplexity(lambda ids: executor.run({"ids": ids, "pos": pos})[0].numpy(), text)
    return {"method": method, "percent": percent, "pipeline": pipeline, "perplexity": found.perplexity,
            "interval95": found.interval, "removed": 1 - sum(block.parameters for block in blocks(module.main)) / whole,
            "cpu_seconds": round(seconds, 1), "peak_bytes": peak, "calibration_tokens": int(calibration.size),
            "details": receipts[-1].details if receipts else {}}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calib", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--every", default=4, show_default=True, help="Of all chunks in order of the file, every how manyth is measured.")
@click.option("--calib-chunks", default=8, show_default=True)
@click.option("--only", multiple=True, help="Rows by name: METHOD PERCENT.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by name; those of other rows are kept.")
@click.option("--worker", hidden=True)
def main(checkpoint: Path, text: Path, calib: Path, every: int, calib_chunks: int, only: tuple[str, ...], out: Path | None,
         worker: str | None) -> None:
    if worker is not None:
        method, _, percent = worker.rpartition(" ")
        print(json.dumps(measured(checkpoint, method, int(percent), every_chunk(text, every),
                                  calibration_chunks(calib, calib_chunks))))
        return
    rows = ["original 0", *(f"{method} {ratio}" for ratio in RATIOS for method in METHODS if METHODS[method])]
    measure_rows(only or rows, out, show=lambda name, record: (
        f"{name:20} {record['perplexity']:10.3f}  {record['removed']:6.1%} gone  {record['cpu_seconds']:7.1f} s  "
        f"{record['peak_bytes'] / 1e9:5.2f} GB"))


if __name__ == "__main__":
    main()
