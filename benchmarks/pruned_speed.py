"""How much smaller and faster a pruned model is, and what widths its kernels like.

    python benchmarks/pruned_speed.py artifacts CHECKPOINT --calib FILE --work DIR [--rounds 7] [--json FILE]
    python benchmarks/pruned_speed.py widths [--rounds 20] [--json FILE]

`artifacts` compiles the checkpoint whole and with 10, 20 and 30 % of the blocks' parameters pruned (`ours` of prune.py: channels
of MLPs), in float32 and in 4 bits, into DIR, where what is there already is used again. Every artifact runs in a process of its
own; in each round every workload is given to one after the other, and ratios are medians over rounds of the ratio within a round.

`widths` times the two products of an MLP of SmolLM2-135M (576 -> 2 w -> 576) at widths w around those that pruning leaves, on one
token, in the same manner: nanoseconds per channel, beside those of a multiple of 64 next to it.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from decode_speed import HERE, Engine, run_rounds
from prune import METHODS, RATIOS, block_parameters

RECIPES = {"fp32": "fp32", "int4": "cpu-int4"}
WORKLOADS = ("decode-short", "decode-1024", "prefill-512")
WIDTHS = (1152, 1168, 1184, 1208, 1216, 1220, 1224, 1228, 1229, 1232, 1248, 1264, 1280, 1536)
HIDDEN, LAYERS = 576, 12


def pipeline(recipe: str, pruning: str) -> str:
    """The text of a recipe with a pass behind its first part; codes are the nearest ones, which are as fast as any."""
    from ingot.passes.recipes import TRACE
    from ingot.passes.recipes import recipe as text_of

    text = text_of(recipe, fitted=False)
    return text.replace(TRACE, f"{TRACE},{pruning}", 1) if pruning else text


def shares(checkpoint: Path) -> tuple[int, int]:
    """Elements of all weights of the blocks, and of their MLPs."""
    from ingot.compiler import load
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.recipes import TRACE

    module = load(checkpoint)
    run_pipeline(module, parse_pipeline(TRACE))
    return block_parameters(module)


def compiled(checkpoint: Path, calib: Path, work: Path, method: str, form: str, percent: int, whole: int,
             mlp: int) -> dict[str, Any]:
    """Bytes, parameters and widths of an artifact, which is made where it is not there yet."""
    from ingot.compiler import compile as compile_model
    from ingot.passes.pipeline import parse_pipeline

    out = work / (f"{form}-{percent}-{method}" if percent else form).replace(" ", "-")
    ratio = percent / 100
    pruning = METHODS[method].replace("WHOLE", f"{ratio:.4f}").replace("PART", f"{ratio * whole / mlp:.4f}") if percent else ""
    if not out.exists():
        passes = pipeline(RECIPES[form], pruning)
        calibrated = any("calibration" in p.requires() and p.contract != "cache" for p in parse_pipeline(passes))
        compile_model(checkpoint, out, passes=passes, calib=calib if calibrated else None, evaluation=False)
    receipts = json.loads((out / "receipts.json").read_text())
    pruned = next((r for r in receipts if r["stage"].startswith("prune")), receipts[0])
    gone = pruned["parameters_before"] - pruned["parameters_after"] if percent else 0
    widths = [left for _, left in pruned["details"]["widths"].values()] if percent else []
    return {"format": form, "percent": percent, "removed": gone / whole, "parameters": pruned["parameters_after"],
            "widths": widths, "path": str(out)}


@click.group()
def main() -> None:
    """See the text of the file."""


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--calib", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the artifacts lie.")
@click.option("--method", type=click.Choice(list(METHODS)), default="ours", show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Rounds that count, after one that does not.")
@click.option("--threads", default=2, show_default=True)
@click.option("--percents", default=",".join(map(str, RATIOS)), show_default=True)
@click.option("--formats", default=",".join(RECIPES), show_default=True)
@click.option("--idle", default=0.0, help="Most seconds to wait, before every run, for other processes.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write rounds and medians to this file.")
def artifacts(checkpoint: Path, calib: Path, work: Path, method: str, rounds: int, threads: int, percents: str, formats: str,
              idle: float, out: Path | None) -> None:
    """Bytes and tokens per second of pruned artifacts beside the whole ones."""
    work.mkdir(parents=True, exist_ok=True)
    whole, mlp = shares(checkpoint)
    records = [compiled(checkpoint, calib, work, method, form, percent, whole, mlp)
               for form in formats.split(",") for percent in (0, *map(int, percents.split(",")))]
    engines = [Engine(f"{r['format']} {r['percent']}", [sys.executable, str(HERE / "rivals/ingot_worker.py"), r.pop("path"),
                                                        "--threads", str(threads)]) for r in records]
    run_rounds(engines, WORKLOADS, rounds=rounds, idle=idle)
    bases = {r["format"]: (r, e) for r, e in zip(records, engines, strict=True) if r["percent"] == 0}
    for record, engine in zip(records, engines, strict=True):
        first, base = bases[record["format"]]
        record |= {"bytes": engine.size, "bytes ratio": round(engine.size / base.size, 4), "peak_bytes": engine.peak,
                   "parameters ratio": round(record["parameters"] / first["parameters"], 4)}
        for workload in WORKLOADS:
            ratios = [mine / theirs for mine, theirs in zip(engine.speed[workload], base.speed[workload], strict=True)]
            record[workload] = round(statistics.median(engine.speed[workload]), 1)
            record[f"{workload} ratio"] = round(statistics.median(ratios), 3)
    click.echo(table(records))
    if out is not None:
        every = {engine.name: engine.speed for engine in engines}
        found = {"threads": threads, "method": method, "artifacts": records, "rounds": every}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = ["| | parameters | MB | " + " | ".join(f"{name}, tokens/s" for name in WORKLOADS) + " |",
             "|---" * (3 + len(WORKLOADS)) + "|"]
    for r in records:
        cells = [f"{r['format']}, {r['percent']} % pruned", f"{r['parameters'] / 1e6:.1f} M ({r['parameters ratio']:.3f})",
                 f"{r['bytes'] / 1e6:.1f} ({r['bytes ratio']:.3f})", *(f"{r[w]} ({r[f'{w} ratio']})" for w in WORKLOADS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mlp_session(width: int, form: str, folder: Path, threads: int) -> Any:
    """A session over LAYERS MLPs of a width, one behind the other: [1, HIDDEN] -> [1, HIDDEN], with random weights."""
    from ingot.backends.onnx.session import open_session
    from ingot.backends.onnx.writer import write
    from ingot.ir.module import Builder, Module
    from ingot.ir.ops.layout import Split
    from ingot.ir.ops.matmul import Linear
    from ingot.ir.ops.pointwise import Mul, Silu
    from ingot.ir.types import TensorType, f32
    from ingot.ir.weights import ArrayWeight
    from ingot.passes.pipeline import parse_pipeline, run_pipeline

    folder.mkdir()
    rng = np.random.default_rng(0)
    module = Module("mlp")
    func = module.add_func("forward")
    x, b = func.add_param("x", TensorType(f32, (1, HIDDEN))), Builder(func)

    def weight(name: str, *shape: int) -> Any:
        return module.add_const(name, ArrayWeight(rng.normal(0, 0.05, shape).astype(np.float32)))

    for layer in range(LAYERS):
        gate, up = b.add(Split(b(Linear(x, weight(f"up{layer}", 2 * width, HIDDEN))), (width, width), -1)).results
        x = b(Linear(b(Mul(b(Silu(gate)), up)), weight(f"down{layer}", HIDDEN, width)))
    func.set_returns([x])
    if form == "int4":
        run_pipeline(module, parse_pipeline("quantize{format=int4 group=32 symmetric}"))
    return open_session(write(module, folder).model, threads=threads)


@main.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write medians to this file.")
def widths(rounds: int, threads: int, out: Path | None) -> None:
    """Time per channel of MLPs at widths that pruning may leave."""
    x = np.random.default_rng(1).normal(size=(1, HIDDEN)).astype(np.float32)
    records: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in RECIPES:
            sessions = {w: mlp_session(w, form, Path(folder) / f"{form}{w}", threads) for w in WIDTHS}
            times: dict[int, list[float]] = {w: [] for w in WIDTHS}
            for number in range(rounds + 2):
                for width, session in sessions.items():
                    start = time.perf_counter()
                    for _ in range(10):
                        session.run(None, {session.get_inputs()[0].name: x})
                    if number > 1:
                        times[width].append((time.perf_counter() - start) / 10 / LAYERS / width * 1e9)
            records[form] = {}
            for width, found in times.items():
                base = times[min((w for w in WIDTHS if w % 64 == 0), key=lambda w: abs(w - width))]
                ratio = statistics.median(mine / theirs for mine, theirs in zip(found, base, strict=True))
                records[form][str(width)] = round(ratio, 3)
                click.echo(f"{form} {width:5}: {statistics.median(found):7.2f} ns a channel, {ratio:.3f} of a multiple of 64's")
    if out is not None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
