"""Plants bugs one at a time and shows which check notices each: contracts, properties or differential tests.

    python benchmarks/mutations/run.py [--only NAME] [--json benchmarks/results/mutations.json [--resume --seconds 300]]

The bugs stand in tables beside this file, by area; each names the checks that are to notice it, cheapest first. Everything
happens on a copy of the sources. The checks of a few bugs run without any bug first, and must pass. A bug counts as caught when
a check compares and says what is wrong; an import that fails, or an exception that nobody raised on purpose, does not count.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchmarks.mutations.detect import Failure, Report
    from benchmarks.mutations.mutant import Detector, Mutant

LIGHT = ("numpy", "ml_dtypes", "lark", "hypothesis")
PRELOADED = (*LIGHT, "torch", "torch.export", "transformers.modeling_utils", "onnx", "onnxruntime", "pytest", "tokenizers")
"""Imported once, by the process that the others are forked from; LIGHT where it is for contracts alone."""
AT_ONCE = 15
"""Mutants whose checks are tried together without a mutant."""


@click.command()
@click.option("--only", "names", multiple=True, help="A mutant, or all whose names contain this; several times for several.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Results; those of other mutants in it are kept.")
@click.option("--resume", is_flag=True, help="Leave out what stands in the JSON file.")
@click.option("--seconds", type=float, help="Begin nothing more after so long.")
def main(names: tuple[str, ...], out: Path | None, resume: bool, seconds: float | None) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.mutations.shadow import shadow, stale
    from benchmarks.mutations.table import MUTANTS

    start = time.perf_counter()

    def late() -> bool:
        return seconds is not None and time.perf_counter() - start > seconds

    done = _stored(out) if resume and out is not None else {}
    chosen = [m for m in MUTANTS if (not names or any(n in m.name for n in names)) and not _same(done.get(m.name), m)]
    if not chosen and not resume:
        raise click.UsageError(f"no mutant {names[0]}; there are: {', '.join(m.name for m in MUTANTS)}")
    for number in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[number] = "1"
    records: list[dict[str, Any]] = []
    with shadow() as root:
        old = [f"{m.name} ({m.file}): {reason}" for m in chosen if (reason := stale(root, m)) is not None]
        if old:
            raise click.ClickException("the sources have changed under these mutants:\n  " + "\n  ".join(old))
        for first in range(0, len(chosen), AT_ONCE):
            few = chosen[first : first + AT_ONCE]
            if late():
                break
            _clean(root, few)
            for mutant in few:
                if late():
                    break
                records.append(_tried(root, mutant))
                if out is not None:
                    _store(out, records, [m.name for m in MUTANTS])
    click.echo(_counted(records))


def _tried(root: Path, mutant: Mutant) -> dict[str, Any]:
    from benchmarks.mutations.shadow import planted

    with planted(root, mutant):
        record = _record(mutant, examined(root, mutant.detectors, stop=True))
    click.echo(f"{record['name']:44} {record['area']:15} {record['caught'] or 'SURVIVED':13} {record['by']}\n"
               f"{'':60} {record['how']}")
    return record


def _same(record: dict[str, Any] | None, mutant: Mutant) -> bool:
    """Whether a record is of this mutant as it stands in the table, and it was caught."""
    return record is not None and record["caught"] is not None and (
        (record["file"], record["old"], record["new"]) == (mutant.file, mutant.old, mutant.new))


def _stored(out: Path) -> dict[str, dict[str, Any]]:
    return {r["name"]: r for r in json.loads(out.read_text())["mutants"]} if out.exists() else {}


def _counted(records: Sequence[dict[str, Any]]) -> str:
    kinds = Counter(r["caught"] for r in records if r["caught"])
    by = ", ".join(f"{n} by {kind}" for kind, n in kinds.most_common())
    return f"{kinds.total()} of {len(records)} caught: {by}"


def _store(out: Path, records: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Results in the order of the table; those of mutants that left it go."""
    known = _stored(out)
    known |= {r["name"]: r for r in records}
    kept = [known[name] for name in names if name in known]
    areas = {area: [r for r in kept if r["area"] == area] for area in sorted({r["area"] for r in kept})}
    out.write_text(json.dumps({
        "planted": len(kept), "caught": sum(r["caught"] is not None for r in kept),
        "by": dict(Counter(r["caught"] for r in kept if r["caught"]).most_common()),
        "areas": {area: {"planted": len(rs), "caught": sum(r["caught"] is not None for r in rs)} for area, rs in areas.items()},
        "survivors": [r["name"] for r in kept if r["caught"] is None], "mutants": kept}, indent=1) + "\n")


def _clean(root: Path, mutants: Sequence[Mutant]) -> None:
    """Every detector passes without a mutant. Raises ClickException naming those that do not."""
    detectors = list(dict.fromkeys(d for m in mutants for d in m.detectors))
    report = examined(root, detectors, stop=False)
    if report.failures:
        raise click.ClickException("these checks fail without any mutant:\n  " + "\n  ".join(
            f"{f.by}: {f.how}" for f in report.failures))
    click.echo(f"{len(detectors)} checks pass without a mutant, in {report.seconds:.0f} s of one core", err=True)


def examined(root: Path, detectors: Sequence[Detector], *, stop: bool) -> Report:
    """What detectors say of the sources below `root`, each lot in a process of its own.

    stop: after the first failure that counts.
    """
    from benchmarks.mutations.detect import Report

    report = Report()
    for interpreted in (False, True):
        part = [d for d in detectors if getattr(d, "interpreted", False) == interpreted]
        if part and not (stop and any(f.counted for f in report.failures)):
            found = _process(root, part, stop=stop, interpreted=interpreted)
            report = Report(report.failures + found.failures, report.seconds + found.seconds)
    return report


def _process(root: Path, detectors: Sequence[Detector], *, stop: bool, interpreted: bool) -> Report:
    from benchmarks.mutations.detect import Failure, Report, work
    from benchmarks.mutations.mutant import Contract

    # Whether Triton interprets is settled when it is imported, so its processes start from nothing.
    context: Any = multiprocessing.get_context("spawn" if interpreted else "forkserver")
    if interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        context.set_forkserver_preload(list(LIGHT if all(isinstance(d, Contract) for d in detectors) else PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    log = root.parent / "log.txt"
    process = context.Process(target=work, args=(root, detectors, log, sender), kwargs={"stop": stop})
    process.start()
    sender.close()
    try:
        report: Report = receiver.recv()
    except EOFError:
        process.join()
        said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        return Report([Failure(detectors[0], str(detectors[0]), f"the process ended with {process.exitcode}: {said}", False)])
    process.join()
    return report


def _record(mutant: Mutant, report: Report) -> dict[str, Any]:
    first: Failure | None = next((f for f in report.failures if f.counted), None)
    shown = first or next(iter(report.failures), None)
    return {"name": mutant.name, "area": mutant.area, "file": mutant.file, "old": mutant.old, "new": mutant.new,
            "caught": first.detector.kind if first is not None else None, "by": shown.by if shown is not None else "nothing",
            "how": shown.how if shown is not None else f"{len(mutant.detectors)} checks passed",
            "seconds": round(report.seconds, 1)}


if __name__ == "__main__":
    main()
