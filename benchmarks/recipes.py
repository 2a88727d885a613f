"""What the recipes for the CPU trade: size, speed and perplexity of one model compiled by each.

    python benchmarks/recipes.py CHECKPOINT OUT --text test.npz --calib calib.npz [--every 2] [--rounds 5] [--only ROW ...]
        [--json FILE]

OUT gets an artifact for each row; those there already are kept. Perplexity is of the artifact as it runs, over every how manyth
chunk of the text. Speeds (tokens/s decoded after 64 and after 1,024 tokens, and of a prompt of 512) are ratios to fp32 within a
round, the median over rounds in which every artifact has its turn.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from ingot.runtime.bench import bench
from ingot.runtime.evaluate import load_chunks, merged, perplexity
from ingot.runtime.session import Session

FITTED = "fitted to text"
ROWS = ("fp32", "cpu-int8", "cpu-int4", f"cpu-int4, {FITTED}", "cpu-int4-small", f"cpu-int4-small, {FITTED}")
WORKLOADS = {"decode": {"prompt_tokens": 64, "new_tokens": 64}, "decode after 1024": {"prompt_tokens": 1024, "new_tokens": 32},
             "prefill": {"prompt_tokens": 512, "new_tokens": 1}}


def compiled(row: str, checkpoint: Path, out: Path, calib: Path, tokens: int) -> Path:
    """The artifact of a row."""
    where = out / row.replace(", ", "-").replace(" ", "-")
    if not (where / "ingot.json").exists():
        more = ["--calib", str(calib), "--calib-tokens", str(tokens), "--calib-context", "1024"] if FITTED in row else []
        subprocess.run([sys.executable, "-m", "ingot", "compile", str(checkpoint), "-o", str(where), "--no-eval", "--recipe",
                        row.split(",")[0], *more], check=True)
    return where


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calib", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calib-tokens", default=8192, show_default=True)
@click.option("--every", default=2, show_default=True, help="Of all chunks in order of the file, every how manyth is measured.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, help="Rows by name.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Records by row; those of other rows are kept.")
def main(checkpoint: Path, out: Path, text: Path, calib: Path, calib_tokens: int, every: int, rounds: int,
         only: tuple[str, ...], report: Path | None) -> None:
    sessions: dict[str, Session] = {}
    records: dict[str, dict[str, Any]] = json.loads(report.read_text()) if report is not None and report.exists() else {}
    chunks = merged(load_chunks(text))[::every]
    for row in dict.fromkeys(["fp32", *(only or ROWS)]):
        folder = compiled(row, checkpoint, out, calib, calib_tokens)
        session = sessions[row] = Session.open(folder)
        if "perplexity" not in records.get(row, {}):
            found = perplexity(lambda ids, session=session: session.logits(ids), chunks)  # type: ignore[misc]
            size = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".bin", ".onnx"))
            records[row] = {"perplexity": found.perplexity, "chunks": len(chunks), "bytes": size}
            click.echo(f"{row:30} {found.perplexity:8.3f} {size / 1e6:8.1f} MB")
    speed: dict[str, dict[str, list[float]]] = {row: {name: [] for name in WORKLOADS} for row in sessions}
    for _ in range(rounds):
        for name, load in WORKLOADS.items():
            for row, session in sessions.items():
                made = bench(session, repeats=1, **load)
                speed[row][name].append(made.prefill_per_second if name == "prefill" else made.decode_per_second)
    for row, found_speeds in speed.items():
        for name, each in found_speeds.items():
            ratios = [a / b for a, b in zip(each, speed["fp32"][name], strict=True)]
            records[row] |= {name: round(statistics.median(each), 1), f"{name} ratio": round(statistics.median(ratios), 3)}
        click.echo(f"{row:30} " + "  ".join(f"{name} {records[row][name]:.1f}/s ({records[row][f'{name} ratio']:.2f}x)"
                                            for name in WORKLOADS))
    if report is not None:
        report.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
