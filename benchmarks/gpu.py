"""Generated kernels on the GPU at hand: right, how fast, and how fast beside torch.compile.

    python benchmarks/gpu.py --stage check|kernels|decode|prefill|compare [--model NAME ...] [--weights FORMAT ...] [--tune]
    python benchmarks/gpu.py --dry-run
    python benchmarks/gpu.py --trace

check: every op on the device against the float64 reference, and a small decoder in every format. The others have decoders of
the shapes of Llama-3.2-1B, Llama-3.1-8B and SmolLM2-135M with random weights. kernels: bytes and operations per second of each
kernel beside a copy and a large product on the same card, and of attention after 32k positions. decode: tokens per second at
batch 1, 8 and 64. prefill: prompts of 512 and 4,096 tokens. compare: transformers under torch.compile in the same run. Every
record goes to results/<card>.json as soon as it is there. Kernels are compiled by all processors at once before a stage starts
them; a stage of one model takes a few minutes, compare the longest, most of it torch.compile's. --dry-run does all stages on
the CPU with tiny shapes. --trace writes the traced decoders to gpu/traced, for a machine that has no transformers; there
everything but compare runs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click

if TYPE_CHECKING:
    from gpu.stages import Record

HERE = Path(__file__).parent


@click.command()
@click.option("--stage", "stages", multiple=True, type=click.Choice(["check", "kernels", "decode", "prefill", "compare"]),
              help="May be given several times [default: all].")
@click.option("--model", "models", multiple=True, help="smollm2-135m, llama-3.2-1b, llama-3.1-8b [default: all].")
@click.option("--weights", multiple=True, help="bf16, or a format of codes [default: bf16, int4, nvfp4, fp8-e4m3].")
@click.option("--batch", "batches", multiple=True, type=int, help="Sequences decoded together [default: 1, 8, 64].")
@click.option("--every", type=click.IntRange(1), help="Of the cases in check, one in so many [default: all; 40 in a dry run].")
@click.option("--page", type=int, default=64, show_default=True, help="Positions of a page of the caches; 0: in one piece.")
@click.option("--overlap", is_flag=True, help="Start each kernel while the one before it ends.")
@click.option("--tune", is_flag=True, help="Measure the choices of every kernel first; the table is kept beside the results.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="[default: results/<card>.json; none in a dry run]")
@click.option("--trace", is_flag=True, help="Write the traced decoders to gpu/traced, and do nothing else.")
@click.option("--dry-run", is_flag=True, help="Tiny shapes on the CPU, kernels interpreted: does every line run?")
def main(stages: tuple[str, ...], models: tuple[str, ...], weights: tuple[str, ...], batches: tuple[int, ...], every: int | None,
         page: int, overlap: bool, tune: bool, out: Path | None, trace: bool, dry_run: bool) -> None:
    """Measure ingot's Triton kernels on this machine's GPU."""
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is below
    import torch
    from gpu.clock import Clock, ceilings
    from gpu.models import SHAPES, TINY, Shape, keep_traced
    from gpu.stages import STAGES, Bench

    from ingot.backends.triton import attention
    from ingot.backends.triton.interpreter import repaired
    from ingot.backends.triton.tuning import Tuner

    if trace:
        for name in models or SHAPES:
            click.echo(keep_traced(Shape(name, SHAPES[name])))
        return
    if not dry_run and not torch.cuda.is_available():
        raise click.ClickException("torch finds no GPU; --dry-run needs none")
    card = "dry-run" if dry_run else torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    unknown = sorted(set(models) - set(SHAPES))
    if unknown:
        raise click.ClickException(f"unknown model {unknown[0]}; there are {', '.join(SHAPES)}")
    shapes = [Shape("tiny", TINY)] if dry_run else [Shape(n, SHAPES[n]) for n in models or SHAPES]
    table = HERE / "results" / f"{slug}.tuning.json"
    clock = Clock(torch.device("cpu" if dry_run else "cuda"))
    tuner = Tuner.load(table, slug)
    with ExitStack() as stack:
        if dry_run:
            stack.enter_context(repaired())
            # Interpreted programs run one after the other.
            stack.enter_context(patch.object(attention, "SPLITS", ((256, 2),)))
        else:
            stack.enter_context(torch.inference_mode())
        bench = Bench(clock=clock, ceilings=ceilings(clock, tiny=dry_run), shapes=shapes, tuner=tuner, tune=tune, tiny=dry_run,
                      weights=list(weights or ("bf16", "int4", "nvfp4", "fp8-e4m3")), processes=os.cpu_count() or 1,
                      every=every or (40 if dry_run else 1), page=page, overlap=overlap and not dry_run,
                      batches=list(batches or ((1, 2) if dry_run else (1, 8, 64))))
        most = bench.ceilings
        click.echo(f"{card}: copy {most.bandwidth / 1e9:,.0f} GB/s, bf16 product {most.flops / 1e12:,.1f} TFLOP/s")
        wrong = 0
        path = out or (None if dry_run else HERE / "results" / f"{slug}.json")
        for stage in stages or STAGES:
            records: list[Record] = []
            for record in STAGES[stage](bench):
                records.append(record)
                wrong += record.get("ok") is False
                click.echo(line(record))
                if path is not None:
                    keep(path, card, bench.ceilings, records)
                if tune and not dry_run:
                    tuner.save(table)
    if wrong:
        click.echo(f"{wrong} checks failed", err=True)
        sys.exit(1)


def line(record: Record) -> str:
    """A record as a row of a table."""
    units: dict[str, tuple[float, str]] = {
        "bytes_per_second": (1e9, "GB/s"), "flops_per_second": (1e12, "TFLOP/s"), "seconds": (1e-6, "us"),
        "seconds_per_step": (1e-3, "ms/step"), "tokens_per_second": (1, "tok/s"), "of_copy": (0.01, "% of copy"),
        "of_matmul": (0.01, "% of product"), "torch_compile_tokens_per_second": (1, "tok/s torch.compile")}
    words = []
    for name, value in record.items():
        if name in units:
            words.append(f"{value / units[name][0]:,.1f} {units[name][1]}")
        elif name not in ("stage", "settings"):
            words.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return f"{record['stage']:8} " + "  ".join(words)


def keep(path: Path, card: str, ceilings: Any, records: list[Record]) -> None:
    """Puts a stage's records into the file of a card in place of older ones of the same stage, model, weights and sizes."""
    import torch
    import triton

    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"records": []}
    names = ("stage", "check", "model", "weights", "batch", "tokens", "context", "kernel", "page", "overlap")
    measured = {tuple(r.get(name) for name in names) for r in records}
    older = [r for r in data["records"] if tuple(r.get(name) for name in names) not in measured]
    data |= {"card": card, "torch": torch.__version__, "triton": triton.__version__, "records": older + records,
             "copy_bytes_per_second": ceilings.bandwidth, "matmul_flops_per_second": ceilings.flops}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
