r"""What quantising a decoder costs: perplexity of every format and method on the same text, with time and memory.

    python benchmarks/quality.py CHECKPOINT --text test.npz --calib calib.npz [--every 2] [--only NAME ...] \
        [--rivals DIR] [--json FILE]

Every pipeline runs in a process of its own, so that its peak memory is its own. Text and calibration text are chunks of
token ids by domain (.npz); every domain's chunks are taken in turn for calibration. Perplexity is of the torch executor in
float32: exp of the mean cross-entropy of all next-token predictions, chunks predicted from their own beginning. --rivals:
what rivals/quality/run.py made, measured by the same program; their seconds and memory are from their own runs.
"""

import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rows import calibration_chunks, every_chunk, keep, measured_row

if TYPE_CHECKING:
    from ingot.ir.module import Module

PIPELINES = {
    "fp32": "",
    "int8 rows rtn": "quantize{format=int8 group=0 OPTIONS}",
    "int4 g128 rtn": "quantize{format=int4 group=128 OPTIONS}",
    "int4 g128 symmetric rtn": "quantize{format=int4 group=128 symmetric OPTIONS}",
    "int4 g128 rtn mse": "quantize{format=int4 group=128 clip=mse OPTIONS}",
    "int4 g128 awq": "awq{format=int4 group=128},quantize{format=int4 group=128 clip=mse OPTIONS}",
    "int4 g128 gptq": "quantize{format=int4 group=128 method=gptq OPTIONS}",
    "int4 g128 gptq once": "quantize{format=int4 group=128 method=gptq compensate=false OPTIONS}",
    "int4 g128 symmetric gptq": "quantize{format=int4 group=128 symmetric method=gptq OPTIONS}",
    "int4 g128 budget gptq": "quantize{budget=4.39 group=128 method=gptq OPTIONS}",
    "int4 g128 rotate gptq": "rotate,quantize{format=int4 group=128 method=gptq OPTIONS}",
    "int4 g32 rtn": "quantize{format=int4 group=32 OPTIONS}",
    "int4 g32 gptq": "quantize{format=int4 group=32 method=gptq OPTIONS}",
    "int3 g128 rtn": "quantize{format=int3 group=128 OPTIONS}",
    "int3 g128 gptq": "quantize{format=int3 group=128 method=gptq OPTIONS}",
    "int2 g64 gptq": "quantize{format=int2 group=64 method=gptq OPTIONS}",
    "nf4 g64 rtn": "quantize{format=nf4 OPTIONS}",
    "nf4 g64 gptq": "quantize{format=nf4 method=gptq OPTIONS}",
    "nvfp4 rtn": "quantize{format=nvfp4 OPTIONS}",
    "nvfp4 gptq": "quantize{format=nvfp4 method=gptq OPTIONS}",
    "mxfp4 rtn": "quantize{format=mxfp4 OPTIONS}",
    "mxfp4 gptq": "quantize{format=mxfp4 method=gptq OPTIONS}",
    "mxfp4 rotate gptq": "rotate,quantize{format=mxfp4 method=gptq OPTIONS}",
    "w8a8": "quantize{format=int8 group=0 symmetric OPTIONS},quantize-inputs",
    "w8a8 smooth": "smooth,quantize{format=int8 group=0 symmetric OPTIONS},quantize-inputs",
    "w8a8 smooth gptq": "smooth,quantize{format=int8 group=0 symmetric method=gptq OPTIONS},quantize-inputs",
    "w8a8 static": "quantize{format=int8 group=0 symmetric OPTIONS},quantize-inputs{scale=tensor}",
    "w8a8 static smooth": "smooth,quantize{format=int8 group=0 symmetric OPTIONS},quantize-inputs{scale=tensor}",
    "fp8": "quantize{format=fp8-e4m3 group=0 OPTIONS},quantize-inputs{format=fp8-e4m3}",
    "mxfp4 gptq, inputs mxfp8": "quantize{format=mxfp4 method=gptq OPTIONS},quantize-inputs{format=mxfp8}",
    "kv cache int8": "insert-kv-cache{dtype=int8}",
    "kv cache int8 by token": "insert-kv-cache{dtype=int8 scale=token}",
    "kv cache int4": "insert-kv-cache{dtype=int4}",
    "kv cache int4 by token": "insert-kv-cache{dtype=int4 scale=token}",
    "2:4 magnitude": "sparsify{pattern=2:4 method=magnitude}",
    "2:4 wanda": "sparsify{pattern=2:4 method=wanda}",
    "2:4 sparsegpt": "sparsify{pattern=2:4}",
}
OPTIONS = "lm-head=none"
"""The output projection stays as it is everywhere, so that the rows compare what is rounded in the layers."""


def measured(checkpoint: Path, pipeline: str, text: np.ndarray, calibration: np.ndarray, context: int) -> dict[str, object]:
    """One pipeline: perplexity, seconds of the pipeline, peak bytes up to its end, and the last receipt's details."""
    from ingot.backends.torch.executor import Executor
    from ingot.compiler import load
    from ingot.passes.base import Context
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.recipes import TRACE
    from ingot.runtime.evaluate import perplexity

    module = load(checkpoint)
    run_pipeline(module, parse_pipeline(TRACE))
    if checkpoint.name.endswith("w8a8"):
        round_inputs(module)
    start, busy = time.perf_counter(), time.process_time()
    batches = [row[None] for row in calibration.reshape(-1, context)]
    receipts = run_pipeline(module, parse_pipeline(pipeline), Context(calibration=batches)) if pipeline else []
    parts = [c.weight.materialize().size for c in module.consts.values()]
    busy = time.process_time() - busy
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    executor = Executor(module, keep=True)
    found = perplexity(lambda ids: executor.run(inputs(module, ids))[0].numpy(), text)
    return {"pipeline": pipeline, "perplexity": found.perplexity, "interval95": found.interval, "tokens": text.size,
            "seconds": seconds, "cpu_seconds": busy, "peak_bytes": peak, "weights": len(parts),
            "calibration_tokens": calibration.size if receipts else 0, "details": receipts[-1].details if receipts else {}}


def round_inputs(module: "Module") -> None:
    """Rounds what linears of layers read to int8, a step per token: what runtimes do for a W8A8 checkpoint of a rival."""
    from ingot.ir.ops.matmul import Linear
    from ingot.ir.value import Const
    from ingot.passes.quantization.quantize_inputs import code_input

    for op in [op for op in module.main.ops if isinstance(op, Linear) and isinstance(op.w, Const) and "_proj" in op.w.name]:
        code_input(module.main, op.x, [op])


def inputs(module: "Module", ids: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of a decoder for token ids i64[1, s] from the beginning, with empty caches if any."""
    sizes = {"B": 1, "T": ids.shape[1]}
    empty = {p.hint or "": np.zeros([d if isinstance(d, int) else sizes[str(d)] for d in p.type.dims], p.type.dtype.numpy)
             for p in module.main.params if p.hint not in ("ids", "pos")}
    return {"ids": ids, "pos": np.arange(ids.shape[1])[None], **empty}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calib", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--every", default=2, show_default=True, help="Of all chunks in order of the file, every how manyth is measured.")
@click.option("--calib-chunks", default=16, show_default=True)
@click.option("--context", default=1024, show_default=True, help="Tokens of a calibration sequence; chunks are cut.")
@click.option("--only", multiple=True, help="Rows of the table by name.")
@click.option("--rivals", type=click.Path(path_type=Path, exists=True), help="Measure these as well; --only none: these alone.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by name; those of other rows are kept.")
@click.option("--worker", hidden=True)
def main(checkpoint: Path, text: Path, calib: Path, every: int, calib_chunks: int, context: int, only: tuple[str, ...],
         rivals: Path | None, out: Path | None, worker: str | None) -> None:
    if worker is not None:
        where = checkpoint if worker in PIPELINES else Path(worker)
        print(json.dumps(measured(where, PIPELINES.get(worker, "").replace("OPTIONS", OPTIONS), every_chunk(text, every),
                                  calibration_chunks(calib, calib_chunks), context)))
        return
    theirs = {folder.name: folder for folder in sorted(rivals.iterdir())} if rivals is not None else {}
    for name in [*(only or PIPELINES), *theirs]:
        if name == "none":
            continue
        record = json.loads((theirs[name] / "record.json").read_text()) if name in theirs else {}
        if "error" not in record:
            record = measured_row(str(theirs.get(name, name))) | record
        click.echo(f"{name:40} {record['error']}" if "error" in record else
                   f"{name:40} {record['perplexity']:8.3f}  {record['seconds']:7.1f} s  {record['peak_bytes'] / 1e9:5.2f} GB")
        keep(out, name, record)


if __name__ == "__main__":
    main()
