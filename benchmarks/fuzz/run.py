"""Fuzzes the readers of outside data, guided by coverage, and reports runs, failures and coverage per reader.

    pip install -e '.[compile,fuzz]'
    python benchmarks/fuzz/run.py --target all --runs 20000 [--seconds 600] [--json benchmarks/results/fuzz.json]

A failure is anything but an IngotError, more than ten seconds, or more than two gigabytes; for text also a module that
does not come back from its own text. What was found lies in the findings folder, with tracebacks; fixed, an input
belongs into tests/fuzz/findings/TARGET/. The corpus grows in its folder and is taken up by the next run, and in the JSON file
runs add up to the number asked for: a long campaign can be done in pieces.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
LONGEST = 32768
"""Bytes of the longest input."""


@click.command()
@click.option("--target", "names", multiple=True, default=["all"], help="A reader, several times for several [default: all].")
@click.option("--runs", default=20000, show_default=True,
              help="Inputs for a quick reader, those in the JSON file included; slow ones get a fraction.")
@click.option("--seconds", type=int, help="Stop each reader after this long.")
@click.option("--seed", default=1, show_default=True, help="Of the first piece of a campaign.")
@click.option("--jobs", default=1, show_default=True, help="Readers at a time.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / ".cache/fuzz", help="Corpora and findings.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Results; those of other readers in it are kept.")
def main(names: tuple[str, ...], runs: int, seconds: int | None, seed: int, jobs: int, work: Path, out: Path | None) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.fuzz.targets import targets

    table = targets()
    chosen = list(table) if "all" in names else list(names)
    if unknown := sorted(set(chosen) - set(table)):
        raise click.UsageError(f"no target {unknown[0]}; there are: {', '.join(table)}")
    results = json.loads(out.read_text()) if out is not None and out.exists() else {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {name: pool.submit(fuzz, name, max(1, runs // table[name].cost), seconds, seed, work.resolve(),
                                     earlier=results.get(name)) for name in chosen}
        for name, result in waiting.items():
            results[name] = result.result()
            shown = "".join(f"\n    {f['error']}  at {f['where']}  ({f['input']})" for f in results[name]["findings"])
            click.echo("{:18} {runs:8} runs  {failures} failing places  {edges_before} -> {edges} edges  {seconds:.0f} s".format(
                name, failures=len(results[name]["findings"]), **results[name]) + shown)
            if out is not None:
                out.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    click.echo(f"{sum(results[name]['runs'] for name in chosen)} runs in all")


def fuzz(name: str, runs: int, seconds: int | None, seed: int, work: Path, *, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """One reader in a process of its own, begun anew when an input ends it. earlier: what the pieces before this one came to."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.fuzz.targets import targets

    corpus, begin, findings = (work / part / name for part in ("corpus", "seeds", "findings"))
    for folder in (corpus, begin, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(targets()[name].seeds()):
        (begin / str(index)).write_bytes(data)
    if earlier is not None and earlier["runs"] >= runs:
        return earlier
    known = earlier or {"runs": 0, "pieces": 0, "edges_before": 0, "edges": 0, "seconds": 0.0}
    start, done, before, after, deaths = time.perf_counter(), known["runs"], known["edges_before"], known["edges"], 0
    temporary = work / "tmp" / name  # of the worker, which libFuzzer ends without cleaning up
    while done < runs and deaths < 20:
        left = [] if seconds is None else [f"-max_total_time={max(1, seconds - int(time.perf_counter() - start))}"]
        options = [f"-runs={runs - done}", f"-max_len={LONGEST}", "-len_control=0", "-mutate_depth=2", "-reduce_inputs=0",
                   "-timeout=600", "-report_slow_units=600", "-rss_limit_mb=0",
                   "-print_final_stats=1", f"-artifact_prefix={findings}/died-", *left, str(corpus), str(begin)]
        log = work / f"{name}.log"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        drawn = seed + 20 * known["pieces"] + deaths
        with log.open("wb") as stream:
            ended = subprocess.run([sys.executable, "-m", "benchmarks.fuzz.worker", name, str(drawn), str(findings), *options],
                                   cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, stdout=stream,
                                   stderr=subprocess.STDOUT).returncode
        said = log.read_text(errors="replace")
        counted = re.findall(r"^#(\d+)\s+(\w+)\s+cov: (\d+)", said, re.M)
        if not counted:
            raise click.ClickException(f"{name} did not start; see {log}")
        done += int(counted[-1][0])
        before = before or int(next((c[2] for c in counted if c[1] == "INITED"), counted[0][2]))
        after = max(after, int(counted[-1][2]))
        if ended == 0:
            break
        deaths += 1
        (findings / f"died-{drawn}.txt").write_text(f"the process ended with {ended}\nnative code\n\n{said[-4000:]}")
    shutil.rmtree(temporary, ignore_errors=True)
    return {"runs": done, "pieces": known["pieces"] + 1, "findings": _found(findings), "edges_before": before, "edges": after,
            "corpus": sum(1 for _ in corpus.iterdir()), "seconds": round(known["seconds"] + time.perf_counter() - start, 1),
            "seed": seed}


def _found(folder: Path) -> list[dict[str, str]]:
    out = []
    for path in sorted(folder.glob("*.txt")):
        error, where = path.read_text(encoding="utf-8", errors="replace").split("\n")[:2]
        out.append({"error": error, "where": where, "input": path.stem})
    return out


if __name__ == "__main__":
    main()
