"""What `--check` costs: a compile with and without it, in seconds by pass and in all.

    python benchmarks/check_cost.py MODEL [--recipe cpu-int4] [--runs 3] [--json benchmarks/results/check_cost.json]

Every compile runs in a process of its own, those with and without checks in turn; medians are reported. A pass's own seconds
come from the runs without checks. Passes that changed nothing are not checked. What checks cost in all is more than the sum over
passes: the module is copied before each.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click


def measured(model: str, recipe: str, check: bool, threads: int) -> dict[str, Any]:
    """One compile: seconds (wall clock and processor), peak memory in bytes, and its receipts."""
    import torch

    import ingot

    torch.set_num_threads(threads)
    before, start = _processor(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = ingot.compile(model, Path(folder) / "out", recipe=recipe, check=check, repro=None)
    return {"seconds": time.perf_counter() - start, "processor": _processor() - before, "peak_bytes": made.peak_bytes,
            "receipts": [r.to_json() for r in made.receipts]}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def summary(plain: Sequence[dict[str, Any]], checked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs without and with checks; by pass its own seconds, those of its check, and how it was checked."""
    middle: dict[str, dict[str, float]] = {
        name: {key: round(statistics.median(run[key] for run in runs), 2) for key in ("seconds", "processor", "peak_bytes")}
        for name, runs in (("without", plain), ("with", checked))}
    passes = []
    for index, receipt in enumerate(checked[0]["receipts"]):
        own = statistics.median(run["receipts"][index]["seconds"] for run in plain)
        checks = [run["receipts"][index]["details"].get("check", {}) for run in checked]
        passes.append({"stage": receipt["stage"], "seconds": round(own, 3),
                       "check_seconds": round(statistics.median(c.get("seconds", 0.0) for c in checks), 3),
                       **{key: value for key, value in checks[0].items() if key != "seconds"}})
    return {**middle, "added": {key: round(middle["with"][key] - middle["without"][key], 2) for key in ("seconds", "processor")},
            "ratio": {key: round(middle["with"][key] / middle["without"][key], 3) for key in ("seconds", "processor")},
            "passes": passes}


@click.command()
@click.argument("model")
@click.option("--recipe", default="cpu-int4", show_default=True)
@click.option("--runs", default=3, show_default=True, help="Compiles of each kind.")
@click.option("--threads", default=1, show_default=True, help="Of torch.")
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(model: str, recipe: str, runs: int, threads: int, out: Path | None) -> None:
    from ingot.report import table

    done: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for number in range(2 * runs):
            check = number % 2 == 1
            done[check].append(pool.submit(measured, model, recipe, check, threads).result())
            click.echo(f"{'with' if check else 'without'} checks: {done[check][-1]['seconds']:.1f} s, "
                       f"{done[check][-1]['processor']:.1f} s of processor time", err=True)
    record = {"model": Path(model).name, "recipe": recipe, "runs": runs, "threads": threads, **summary(done[False], done[True])}
    rows = [[p["stage"], f"{p['seconds']:.2f}", f"{p['check_seconds']:.2f}", p.get("how", "not checked"), p.get("slices", "")]
            for p in record["passes"]]
    click.echo(table(["pass", "seconds", "check", "how", "slices"], rows))
    click.echo(f"{record['with']['seconds']:.1f} s with checks, {record['without']['seconds']:.1f} s without "
               f"({record['ratio']['seconds']:.2f} times; processor time {record['ratio']['processor']:.2f} times)")
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
