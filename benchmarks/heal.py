"""What training wins back of what passes cost a decoder: perplexity before, after, and of the model that was there.

    python benchmarks/heal.py CHECKPOINT --text test.npz --calib calib.npz [--minutes 20] [--only NAME ...] [--json FILE]

Every row is a process of its own. Text and calibration text are chunks of token ids by domain (.npz). Perplexity is of the torch
executor in float32: exp of the mean cross-entropy of all next-token predictions. `won back` is the part of the log-perplexity
that was lost. With --journal a run that is killed goes on where it was.
"""

import json
import math
import sys
import time
from pathlib import Path

import click
import numpy as np
from rows import calibration_chunks, every_chunk, measure_rows

DAMAGE = {
    "prune 20": "prune{what=mlp ratio=PART}",
    "prune layers 20": "prune{what=layers ratio=0.2 repair=none}",
    "int4 g128": "quantize{format=int4 group=128 method=gptq}",
    "int3 g128": "quantize{format=int3 group=128 method=gptq}",
    "2:4": "sparsify{pattern=2:4}",
}
"""Pipelines by name; PART is what a fifth of the blocks' parameters is of those of the MLPs alone."""
FITTED = 8
"""Chunks of calibration text that the passes before `heal` see."""


def measured(checkpoint: Path, name: str, heal: str, text: np.ndarray, calibration: np.ndarray,
             journal: Path | None) -> dict[str, object]:
    """One row: perplexities of the model, of what the pipeline makes of it, and of what is healed; receipts of both."""
    from prune import block_parameters  # the script beside this one

    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.ir.copy import copy_module
    from ingot.ir.module import Module
    from ingot.passes.base import Context
    from ingot.passes.journal import Journal
    from ingot.passes.pipeline import parse_pipeline, run_pass, run_pipeline
    from ingot.runtime.evaluate import perplexity

    pos = np.arange(text.shape[1])[None]

    def perplexity_of(module: Module) -> float:
        executor = Executor(module, keep=True)
        return perplexity(lambda ids: executor.run({"ids": ids, "pos": pos})[0].numpy(), text).perplexity

    def step(done: int, total: int, what: str) -> None:
        print(f"{done}/{total} {what}", file=sys.stderr)

    module = load(checkpoint)
    run_pipeline(module, parse_pipeline("clean,recognize,clean"))
    teacher = copy_module(module)
    whole, mlp = block_parameters(module)
    damage = DAMAGE[name].replace("PART", f"{0.2 * whole / mlp:.4f}")
    chunks = [row[None] for row in calibration]
    damaged = run_pipeline(module, parse_pipeline(damage), Context(calibration=chunks[:FITTED]))[-1]
    found = {"original": perplexity_of(teacher), "before": perplexity_of(module)}
    (p,) = parse_pipeline(heal)
    start = time.process_time()
    healed = run_pass(module, p, Context(calibration=chunks, teacher=teacher, journal=Journal(journal), progress=step))
    seconds = time.process_time() - start
    found["after"] = perplexity_of(module)
    lost, left = (math.log(found[which] / found["original"]) for which in ("before", "after"))
    return {"name": name, "pipeline": f"{damage},{heal}", "perplexity": found, "won_back": 1 - left / lost,
            "cpu_seconds": round(seconds, 1), "tokens_measured": int(text.size), "calibration_tokens": int(calibration.size),
            "receipts": [damaged.to_json(), healed.to_json()]}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calib", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--minutes", default=20.0, show_default=True, help="Of processor time for `heal`.")
@click.option("--steps", type=int, help="Steps of `heal`, instead of minutes.")
@click.option("--options", default="", help="Further options of it, as in pipeline text.")
@click.option("--every", default=4, show_default=True, help="Of all chunks in order of the file, every how manyth is measured.")
@click.option("--only", multiple=True, help=f"Rows by name: {', '.join(DAMAGE)}.")
@click.option("--journal", type=click.Path(path_type=Path), help="A folder for checkpoints.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by name; those of other rows are kept.")
@click.option("--worker", hidden=True)
def main(checkpoint: Path, text: Path, calib: Path, minutes: float, steps: int | None, options: str, every: int,
         only: tuple[str, ...], journal: Path | None, out: Path | None, worker: str | None) -> None:
    if worker is not None:
        length = f"minutes={minutes:g}" if steps is None else f"steps={steps}"
        heal = f"heal{{{length}{f' {options}' if options else ''}}}"
        print(json.dumps(measured(checkpoint, worker, heal, every_chunk(text, every), calibration_chunks(calib), journal)))
        return
    measure_rows(only or DAMAGE, out, show=lambda name, record: (
        f"{name:16} {record['perplexity']['original']:8.3f}  {record['perplexity']['before']:8.3f} -> "
        f"{record['perplexity']['after']:8.3f}  {record['won_back']:6.1%} won back  {record['cpu_seconds']:7.1f} s"))


if __name__ == "__main__":
    main()
