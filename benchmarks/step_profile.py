"""Where the milliseconds of a decode step go, by operator and by what the operator computes.

    python benchmarks/step_profile.py ARTIFACT [--past 32] [--steps 100] [--threads 2] [--json FILE]

onnxruntime's own profiler adds a little to every operator; the last line says what a step costs without it.
"""

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import onnxruntime

from ingot.report import table
from ingot.runtime.session import Session


def step_seconds(artifact: Path, past: int, steps: int, threads: int) -> float:
    """Median seconds of a step after `past` tokens."""
    session = Session.open(artifact, threads=threads)
    tokens = session.prefill([np.arange(100, 100 + past)]).argmax(-1)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        tokens = session.step(tokens).argmax(-1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def profiled(artifact: Path, past: int, steps: int, threads: int) -> list[dict[str, object]]:
    """Profiler events of the operators over `steps` decode steps."""
    with tempfile.TemporaryDirectory() as folder:
        class Profiled(onnxruntime.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = f"{folder}/step"

        original, onnxruntime.SessionOptions = onnxruntime.SessionOptions, Profiled
        try:
            session = Session.open(artifact, threads=threads)
        finally:
            onnxruntime.SessionOptions = original
        session.prefill([np.arange(100, 100 + past)])
        token = np.array([100])
        for _ in range(steps):
            session.step(token)
            session.rewind(1)
        file = session._graph._session.end_profiling()
        events: list[dict[str, object]] = json.loads(Path(file).read_text())
    return events


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--past", default=32, show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(artifact: Path, past: int, steps: int, threads: int, out: Path | None) -> None:
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profiled(artifact, past, steps, threads):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            shape = re.sub(r"\s", "", str(event["args"].get("output_type_shape", "")))  # type: ignore[attr-defined]
            op = str(event["args"]["op_name"])  # type: ignore[index]
            label = f"{op} {shape}" if op == "MatMulNBits" else op
            if "[1,1," in shape or op != "MatMulNBits":
                spent[label] += float(event["dur"])  # type: ignore[arg-type]
                calls[label] += 1
    total = sum(spent.values())
    rows = [(label, f"{calls[label] / steps:.0f}", f"{us / calls[label]:.0f}", f"{us / steps / 1000:.2f}",
             f"{100 * us / total:.0f} %")
            for label, us in sorted(spent.items(), key=lambda item: -item[1]) if calls[label] >= steps]
    plain = step_seconds(artifact, past, steps, threads)
    click.echo(table(("operator", "calls", "us each", "ms a step", "share"), rows))
    click.echo(f"\na step without the profiler: {1000 * plain:.2f} ms ({1 / plain:.0f} tokens/s)")
    if out is not None:
        out.write_text(json.dumps({"past": past, "threads": threads, "step_seconds": plain, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
