"""Runs detectors in a process of its own, on a copy of the sources in which a mutant may be planted."""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.mutations.mutant import Contract, Detector, NamedTest

CPU_SECONDS = 300
"""After so much computing a process is ended: a mutant that loops is not noticed by any check, only by a clock."""


@dataclass(frozen=True)
class Failure:
    """A detector that failed. counted: it compared and said what is wrong, rather than that something broke down."""

    detector: Detector
    by: str
    how: str
    counted: bool


@dataclass
class Report:
    """seconds: of CPU time."""

    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


def work(root: Path, detectors: Sequence[Detector], log: Path, answer: Connection, *, stop: bool) -> None:
    """Sends a Report of the detectors on the sources below `root`. stop: after the first failure that counts."""
    # Another copy of the sources must not be found, nor compiled files be written: a mutant is younger than they look.
    sys.dont_write_bytecode = True
    sys.path[:] = [str(root), str(root / "src"), *(p for p in sys.path if not (Path(p or ".") / "src/ingot").is_dir())]
    os.chdir(root)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    report = Report()
    for group in _groups(detectors, one_by_one=stop):
        report.failures += [_contract(group[0])] if isinstance(group[0], Contract) else _tests(group)
        report.failures = [f for f in report.failures if f is not None]
        if stop and any(f.counted for f in report.failures):
            break
    used = resource.getrusage(resource.RUSAGE_SELF)
    report.seconds = used.ru_utime + used.ru_stime
    answer.send(report)


def _groups(detectors: Sequence[Detector], *, one_by_one: bool) -> list[list[Any]]:
    """Contracts alone; tests alone or all together."""
    tests = [d for d in detectors if isinstance(d, NamedTest)]
    if one_by_one or not tests:
        return [[d] for d in detectors]
    return [*([d] for d in detectors if isinstance(d, Contract)), tests]


def _contract(detector: Contract) -> Any:
    """The Failure, or None."""
    import numpy as np

    try:
        from ingot.passes.base import Context
        from ingot.passes.contracts.contract import Check
        from ingot.passes.pipeline import parse_pipeline, run_pipeline
        from ingot.testing import Decoder
        from ingot.testing.written_out import Spelling

        module = Decoder(**dict(detector.plan), spelling=Spelling(**dict(detector.spelling))).module(raw=detector.raw)
        calibration = [np.random.default_rng(0).integers(0, int(module.meta["vocab"]), (1, 12))]
        run_pipeline(module, parse_pipeline(detector.pipeline), Context(calibration=calibration), check=Check())
    except Exception as error:
        stage = getattr(error, "stage", None)
        return Failure(detector, f"--check {stage or detector.pipeline}", *judged(error))
    return None


def _tests(tests: Sequence[NamedTest]) -> list[Failure]:
    import pytest

    recorder = _Recorder()
    # A contract before may have imported Hypothesis, whose plugin pytest would have liked to load itself.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning",
               "--rootdir", os.getcwd(), *(["-x"] if len(tests) == 1 else [])]
    code = pytest.main([*options, *(t.id for t in tests)], plugins=[recorder])
    known = {t.id: t for t in tests}
    found = [Failure(known.get(name, tests[0]), name, *judged(error)) for name, error in recorder.errors]
    if not found and (code != 0 or recorder.passed < len(tests)):
        found.append(Failure(tests[0], tests[0].id, f"pytest ended with {int(code)}, {recorder.passed} passed", False))
    return found


class _Recorder:
    """A pytest plugin that keeps what tests raised, and lets Hypothesis stop at the first counterexample unshrunk."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, BaseException]] = []
        self.passed = 0

    def pytest_collection(self, session: Any) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutants", settings(), phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
        settings.load_profile("mutants")

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is not None:
            self.errors.append((item.nodeid, call.excinfo.value))
        elif call.when == "call":
            self.passed += 1


def judged(error: BaseException) -> tuple[str, bool]:
    """What an error says, and whether it counts: assertions and ingot's own errors about a graph do, breakdowns do not."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    names = {cls.__name__ for cls in type(error).__mro__}
    if "AssertionError" in names:
        # An assertion inside ingot has no message: it guards, and was not to fail.
        counted = bool(lines) or any("/tests/" in frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:])
    else:
        counted = "Failed" in names or ("IngotError" in names and "the reference failed" not in message)
    shown = " ".join(lines[:2])
    return f"{type(error).__name__}: {shown}"[:200], counted


__all__ = ["Failure", "Report", "judged", "work"]
