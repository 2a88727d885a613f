"""Decode and prefill speed of ingot's 4-bit artifacts beside other runtimes', in one interleaved run.

    python benchmarks/decode_speed.py ARTIFACT_B32 ARTIFACT_B128 --rivals DIR [--rounds 5] [--json FILE]

DIR is what `benchmarks/rivals/setup.sh` made. Every engine runs in a process of its own with its model
loaded; in every round each workload is given to one engine after the other, so that a change of the machine's
load meets all alike. Ratios are medians over rounds of the ratio within a round.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

HERE = Path(__file__).parent
WORKLOADS = ("decode-short", "decode-1024", "batch8", "prefill-512")
BASES = {"b32": "genai b32", "b128": "genai b128"}
"""What the engines of either block size are compared with; those without one are compared with the first."""


@dataclass
class Engine:
    """A worker process and what it measured."""

    name: str
    command: list[str]
    speed: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WORKLOADS})
    """Tokens per second, by workload, one for every round."""
    size: int = 0
    """Bytes of the model's files."""
    peak: int = 0
    """Highest resident bytes of the process."""

    def start(self) -> None:
        """Start the process and wait until the model is loaded."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while not (line := self._read()).startswith("ready"):
            pass
        self.size = json.loads(line.removeprefix("ready"))["bytes"]

    def run(self, workload: str) -> float:
        """Tokens per second of one run of a workload."""
        self._write(workload)
        answer = json.loads(self._read())
        return answer["tokens"] / answer["seconds"]

    def stop(self) -> None:
        """Ask for the peak memory and end the process."""
        self._write("quit")
        self.peak = json.loads(self._read())["peak_bytes"]
        self.process.wait()

    @property
    def base(self) -> str:
        """The engine this one is compared with."""
        return BASES.get(self.name.split()[-1], BASES["b32"])

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended early: {' '.join(self.command)}")
        return line


def engines(b32: Path, b128: Path, rivals: Path, threads: int) -> list[Engine]:
    """Every engine whose environment and model are there."""

    def rival(name: str, environment: str, script: str, model: str) -> Engine:
        return Engine(
            name,
            [str(rivals / environment / "bin/python"), str(HERE / "rivals" / script), str(rivals / model)],
        )

    worker = [sys.executable, str(HERE / "rivals/ingot_worker.py")]
    listed = [
        rival("genai b32", "genai", "genai.py", "genai-b32"),
        Engine("ingot b32", [*worker, str(b32)]),
        rival("genai b128", "genai", "genai.py", "genai-b128"),
        Engine("ingot b128", [*worker, str(b128)]),
        rival("genai-tuned b32", "genai", "genai.py", "genai-tuned-b32"),
        rival("genai-tuned b128", "genai", "genai.py", "genai-tuned-b128"),
        rival("llama.cpp q4_0", "llamacpp", "llama_cpp.py", "llama-q4_0.gguf"),
        rival("openvino g32", "openvino", "openvino.py", "openvino-g32"),
    ]
    for engine in listed:
        engine.command += ["--threads", str(threads)]
    return [
        engine for engine in listed if Path(engine.command[0]).exists() and Path(engine.command[2]).exists()
    ]


def run_rounds(engines: Sequence[Engine], workloads: Sequence[str], *, rounds: int, idle: float) -> None:
    """Starts engines, gives every workload to one after the other in each round, and stops them; speeds stay in `Engine.speed`.

    rounds: those that count, after one that does not. idle: most seconds to wait, before every run, for other processes.
    """
    for engine in engines:
        engine.start()
    for number in range(rounds + 1):
        for workload in workloads:
            for engine in engines:
                wait_idle(idle)
                speed = engine.run(workload)
                if number:
                    engine.speed[workload].append(speed)
        click.echo(f"round {number} of {rounds}" + (" (warm-up)" if number == 0 else ""), err=True)
    for engine in engines:
        engine.stop()


def wait_idle(seconds: float) -> None:
    """Wait until other processes leave the processors alone, for at most `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = processor_times()
        time.sleep(0.1)
        after = processor_times()
        if after[0] - before[0] <= 0.06 * (after[1] - before[1]) + 1:
            return


def processor_times() -> tuple[int, int]:
    """Busy and total ticks of all processors so far."""
    ticks = [
        int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    ]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def report(listed: list[Engine]) -> list[dict[str, object]]:
    """A record per engine: medians, ratios to its base within rounds, bytes."""
    named = {engine.name: engine for engine in listed}
    records: list[dict[str, object]] = []
    for engine in listed:
        base = named.get(engine.base)
        record: dict[str, object] = {
            "engine": engine.name,
            "base": engine.base,
            "bytes": engine.size,
            "peak_bytes": engine.peak,
        }
        for workload, speeds in engine.speed.items():
            record[workload] = round(statistics.median(speeds), 1)
            if base is not None:
                ratios = [mine / theirs for mine, theirs in zip(speeds, base.speed[workload], strict=True)]
                record[f"{workload} ratio"] = round(statistics.median(ratios), 3)
        records.append(record)
    return records


def table(records: list[dict[str, object]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| tokens/s (ratio to genai) | " + " | ".join(WORKLOADS) + " | MB | peak MB |",
        "|---" * (len(WORKLOADS) + 3) + "|",
    ]
    for record in records:
        cells = [f"{record[name]} ({record.get(f'{name} ratio', '-')})" for name in WORKLOADS]
        sizes = [f"{int(str(record[key])) / 1e6:.1f}" for key in ("bytes", "peak_bytes")]
        lines.append(f"| {record['engine']} | " + " | ".join(cells + sizes) + " |")
    return "\n".join(lines)


@click.command()
@click.argument("artifact_b32", type=click.Path(path_type=Path, exists=True))
@click.argument("artifact_b128", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--rivals", type=click.Path(path_type=Path, exists=True), required=True, help="Made by rivals/setup.sh."
)
@click.option("--rounds", default=5, show_default=True, help="Rounds that count, after one that does not.")
@click.option("--threads", default=2, show_default=True)
@click.option("--only", help="Engines whose name contains one of these, separated by commas.")
@click.option("--idle", default=0.0, help="Most seconds to wait, before every run, for other processes.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write rounds and medians to this file.")
def main(
    artifact_b32: Path,
    artifact_b128: Path,
    rivals: Path,
    rounds: int,
    threads: int,
    only: str | None,
    idle: float,
    out: Path | None,
) -> None:
    """Runs the comparison and prints the table."""
    listed = engines(artifact_b32, artifact_b128, rivals, threads)
    if only is not None:
        listed = [engine for engine in listed if any(part.strip() in engine.name for part in only.split(","))]
    run_rounds(listed, WORKLOADS, rounds=rounds, idle=idle)
    records = report(listed)
    click.echo(table(records))
    if out is not None:
        every = {engine.name: engine.speed for engine in listed}
        out.write_text(
            json.dumps({"threads": threads, "engines": records, "rounds": every}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
