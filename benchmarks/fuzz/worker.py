"""A process that fuzzes one reader with atheris (libFuzzer over instrumented Python).

    python -m benchmarks.fuzz.worker TARGET SEED FINDINGS [libFuzzer options and corpus folders]

Failures do not end it: each new kind is written to FINDINGS as the input, with its traceback beside it. What lies there already
is tried first, and goes if it does not fail any more.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

STEM = 12
"""Letters in the name of a finding: of its hash."""


def main(name: str, seed: int, findings: Path, options: list[str]) -> None:
    with atheris.instrument_imports(include=["ingot"]):  # pyright: ignore[reportAttributeAccessIssue]
        from benchmarks.fuzz.targets import targets
        from benchmarks.fuzz.trial import trial

        target = targets()[name]
        wholes = target.seeds()
        for data in wholes:  # what is imported late is imported, and instrumented, now
            trial(target.read, data)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()

    def one(data: bytes) -> None:
        failure = trial(target.read, data)
        if failure is None:
            return
        counts[failure.kind] += 1
        if counts[failure.kind] == 1:
            stem = hashlib.sha256(data).hexdigest()[:STEM]
            (findings / stem).write_bytes(data)
            (findings / f"{stem}.txt").write_text(f"{failure.error}\n{failure.where}\n\n{failure.trace}", encoding="utf-8",
                                                  errors="replace")

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:  # where coverage tells little, what libFuzzer keeps is soon short and far from whole
            data = rng.choice(wholes)
        if target.mutate is None or rng.random() < 0.3:
            return bytes(atheris.Mutate(data, limit))
        return target.mutate(data, rng)[:limit]

    findings.mkdir(parents=True, exist_ok=True)
    for path in sorted(findings.glob("[0-9a-f]" * STEM)):
        data = path.read_bytes()
        for old in (path, path.with_name(f"{path.name}.txt")):
            old.unlink(missing_ok=True)
        one(data)
    atheris.Setup([name, f"-seed={seed}", *options], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
