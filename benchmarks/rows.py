"""Rows of a benchmark that are processes of their own, so that each has its own peak memory, and the text they read."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

Record = dict[str, Any]


def every_chunk(path: Path, every: int) -> np.ndarray:
    """Of the chunks of all domains, in order of the file, every how manyth: i64[n, tokens]."""
    from ingot.runtime.evaluate import load_chunks, merged

    chunks: np.ndarray = merged(load_chunks(path))[::every]
    return chunks


def calibration_chunks(path: Path, count: int | None = None) -> np.ndarray:
    """The first chunks when one of each domain is taken in turn, i64[n, tokens]; None for all."""
    from ingot.calibration import in_turn
    from ingot.runtime.evaluate import load_chunks

    return np.stack(list(in_turn(list(load_chunks(path).values())))[:count])


def measured_row(name: str) -> Record:
    """The record of a row: what this command, run again with `--worker NAME`, prints last, as JSON."""
    run = subprocess.run([sys.executable, *sys.argv, "--worker", name], stdout=subprocess.PIPE, text=True, check=True)
    record: Record = json.loads(run.stdout.splitlines()[-1])
    return record


def measure_rows(names: Iterable[str], out: Path | None, *, show: Callable[[str, Record], str], prefix: str = "") -> None:
    """Measures rows, shows the record of each, and keeps it in `out` beside those of others."""
    for name in names:
        record = measured_row(name)
        click.echo(show(name, record))
        keep(out, f"{prefix}{name}", record)


def keep(out: Path | None, name: str, record: Record) -> None:
    """Adds a record to a file of records by name; does nothing without a file."""
    if out is not None:
        records = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(records | {name: record}, indent=1) + "\n")
