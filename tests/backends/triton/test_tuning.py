"""Settings of kernels: the default without measurements, the fastest with them, kept in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingot.backends.triton.groups import partition
from ingot.backends.triton.tuning import TABLE, Tuner, key
from ingot.errors import ArtifactError
from tests.backends.triton.examples import example

KERNEL = partition(example("llama_layer").main)[1].variants[0].kernels[0]


def test_without_measurements_a_kernel_has_its_defaults() -> None:
    assert Tuner().settings(KERNEL, {"B": 1, "S": 1}) == {}


def test_the_fastest_is_kept_and_measured_once(tmp_path: Path) -> None:
    tuner, calls = Tuner(chip="sm_90"), []
    times = {tuple(sorted(c.items())): 1.0 + i for i, c in enumerate(reversed(KERNEL.choices))}

    def run(settings: object) -> None:
        calls.append(settings)

    def seconds(start: object) -> float:
        start()  # type: ignore[operator]
        if len(calls) == 2:
            raise RuntimeError("out of resources")
        return times.get(tuple(sorted(calls[-1].items())), 100.0)

    best = tuner.measure(KERNEL, {"B": 1, "S": 1}, run, seconds)
    assert best == KERNEL.choices[-1]
    count = len(calls)
    assert tuner.measure(KERNEL, {"B": 1, "S": 1}, run, seconds) == best
    assert len(calls) == count
    tuner.save(tmp_path / "table.json")
    again = Tuner.load(tmp_path / "table.json", "sm_90")
    assert again.settings(KERNEL, {"B": 1, "S": 1}) == best
    assert again.settings(KERNEL, {"B": 64, "S": 512}) == {}


def test_a_default_that_fails_is_an_error() -> None:
    def fail(start: object) -> float:
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        Tuner().measure(KERNEL, {"B": 1, "S": 1}, lambda s: None, fail)


def test_keys_tell_sizes_apart_by_powers_of_two() -> None:
    kernel = partition(example("llama_layer").main)[1].variants[1].kernels[0]
    keys = [key(kernel, "c", {"B": 1, "S": s}) for s in (5, 8, 9)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("text", "message"), [("{", "damaged"), ("[]", "not a table"), ('{"k": {"BLOCK": "1"}}', "not a table")])
def test_a_damaged_table_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        Tuner.load(tmp_path / TABLE, "")


def test_without_a_table_there_are_defaults(tmp_path: Path) -> None:
    assert Tuner.load(tmp_path / TABLE, "H200") == Tuner(chip="H200")
