"""Killing a calibrated compile at random moments: the same command goes on, and makes the same bytes.

    python benchmarks/resume.py CHECKPOINT --calib calib.npz [--moments 10] [--seed 0] [--json benchmarks/results/resume.json]

The compile runs once undisturbed. Then, for each moment, it is started into an empty folder, killed with SIGKILL once a random
number of weights is finished and a random part of a second has passed, and started again. Compared is every file of the
artifact but receipts.json and ingot.json, which hold seconds.
"""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from ingot.report import table

PASSES = "clean,recognize,clean,fuse,quantize{format=int4 group=32 method=gptq},take-logits,insert-kv-cache,clean"


def digests(artifact: Path) -> dict[str, str]:
    """sha256 of each file whose bytes follow from the command alone."""
    return {str(p.relative_to(artifact)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(artifact.rglob("*"))
            if p.is_file() and p.name not in ("receipts.json", "ingot.json")}


def finished(folder: Path) -> int:
    """Weights in the journal of the artifact that is being made in a folder."""
    return len(list(folder.glob(".out.ingot-journal/*/*.npz")))


def calibrated(artifact: Path) -> dict[str, Any]:
    """What the receipt of the pass that calibrates says."""
    receipts = json.loads((artifact / "receipts.json").read_text())
    return next(r["details"] for r in receipts if "sites" in r["details"])


def compiled(command: list[str], folder: Path) -> float:
    """Seconds of a whole compile into a folder."""
    start = time.perf_counter()
    subprocess.run([*command, "-o", str(folder / "out")], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def killed(command: list[str], folder: Path, *, weights: int, delay: float) -> float:
    """Seconds of a compile that is killed `delay` seconds after so many weights are finished, or ends before."""
    start = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(folder / "out")], stderr=subprocess.DEVNULL)
    while process.poll() is None and finished(folder) < weights:
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    process.wait()
    return time.perf_counter() - start


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--calib", type=click.Path(path_type=Path, exists=True), help="[default: the sample that comes with ingot]")
@click.option("--calib-tokens", default=8192, show_default=True)
@click.option("--passes", default=PASSES, show_default=True)
@click.option("--moments", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(checkpoint: Path, calib: Path | None, calib_tokens: int, passes: str, moments: int, seed: int, out: Path | None) -> None:
    command = [sys.executable, "-m", "ingot", "compile", str(checkpoint), "--passes", passes, "--no-eval",
               "--calib-tokens", str(calib_tokens), *(["--calib", str(calib)] if calib is not None else [])]
    choose = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        seconds = compiled(command, whole)
        expected, sites = digests(whole / "out"), len(calibrated(whole / "out")["sites"])
        for number in range(moments):
            folder = Path(root) / str(number)
            before = killed(command, folder, weights=choose.randint(0, sites), delay=choose.random())
            kept = finished(folder)
            after = compiled(command, folder)
            identical = digests(folder / "out") == expected and [p.name for p in folder.iterdir()] == ["out"]
            rows.append({"weights_finished": kept, "seconds_before": round(before, 1), "seconds_after": round(after, 1),
                         "resumed": calibrated(folder / "out").get("resumed", 0), "identical": identical})
            click.echo(f"{number + 1} of {moments}: {rows[-1]}", err=True)
    record = {"passes": passes, "weights": sites, "seconds_undisturbed": round(seconds, 1), "seed": seed,
              "identical": sum(row["identical"] for row in rows), "moments": rows}
    click.echo(table(list(rows[0]), [list(row.values()) for row in rows]))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(row["identical"] and row["resumed"] == row["weights_finished"] for row in rows) else 1)


if __name__ == "__main__":
    main()
