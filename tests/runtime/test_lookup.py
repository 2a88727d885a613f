"""Weights made by looking packed bytes up: what comes out, and plans that contradict themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.errors import ArtifactError
from ingot.runtime.lookup import LookedUp, looked_up
from ingot.runtime.prefill import prefill_weights
from ingot.runtime.records import record

N, K, GROUP = 3, 10, 4
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 16, (N, 12)).astype(np.uint8)
SCALE = RNG.uniform(0.5, 2, (N, 3)).astype(np.float32)
NIBBLES = (np.arange(256)[:, None] >> np.array([0, 4]) & 15).astype(np.float32)


@pytest.fixture
def plan(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A weights file, and the entry of a weight [3, 10] of 4-bit codes in groups of 4."""
    spans, data = {}, b""
    parts = {"packed": CODES[:, ::2] | CODES[:, 1::2] << 4, "table": NIBBLES, "scale": SCALE,
             "zero": np.array([[0x21, 0x03]] * N, np.uint8), "codes": RNG.integers(0, 256, (N, 3)).astype(np.uint8),
             "values": np.linspace(0.5, 2, 256).astype(np.float32), "one": np.array([0.25], np.float32),
             "bytes": np.repeat(np.arange(256, dtype=np.uint8), 2)}
    for name, array in parts.items():
        spans[name] = [len(data), array.nbytes]
        data += array.tobytes()
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    steps = {"k": K, "group": GROUP, "rows": N, "scale": spans["scale"]}
    entry = {"offset": 64, "n": N, "packed": spans["packed"], "planes": [{"bytes": 6, "table": spans["table"]}], "steps": steps}
    return path, {"entry": entry, "spans": spans}


def expected(step: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
    """f32[k, n]."""
    values = CODES.astype(np.float32).reshape(N, 3, GROUP)
    values = values if zero is None else values - zero[..., None]
    return (values * step[..., None]).reshape(N, -1)[:, :K].T


def test_floats(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    made = looked_up(record(LookedUp, given["entry"]), path)
    assert list(made) == [64]
    np.testing.assert_array_equal(made[64], expected(SCALE))


def test_zero_points(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    spans = given["spans"]
    given["entry"]["steps"] |= {"zero": spans["zero"], "zero_table": spans["table"]}
    made = looked_up(record(LookedUp, given["entry"]), path)[64]
    np.testing.assert_array_equal(made, expected(SCALE, np.array([[1, 2, 3]] * N, np.float32)))


def test_coded_steps(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    spans = given["spans"]
    more = {"scale": "codes", "values": "values", "tensor_scale": "one", "offset": "one"}
    given["entry"]["steps"] |= {part: spans[name] for part, name in more.items()}
    data = path.read_bytes()
    codes = np.frombuffer(data, np.uint8, 9, spans["codes"][0]).reshape(N, 3)
    values = np.frombuffer(data, np.float32, 256, spans["values"][0])
    made = looked_up(record(LookedUp, given["entry"]), path)[64]
    np.testing.assert_allclose(made, expected(values[codes] * np.float32(0.25) + np.float32(0.25)), rtol=1e-6)


def test_one_step_for_all_rows(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    given["entry"]["steps"] |= {"rows": 1, "group": K, "scale": given["spans"]["one"]}
    made = looked_up(record(LookedUp, given["entry"]), path)[64]
    np.testing.assert_array_equal(made, CODES[:, :K].T * np.float32(0.25))


def test_int8_rows(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    given["entry"]["scale_offset"] = 128
    made = looked_up(record(LookedUp, given["entry"]), path)
    assert made[64].dtype == np.int8
    wanted = expected(SCALE)
    np.testing.assert_allclose(made[128], np.abs(wanted).max(0) / 127, rtol=1e-6)
    assert (np.abs(made[64] * made[128] - wanted) <= 0.501 * made[128]).all()


def test_codes_of_another_width(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    entry = {k: v for k, v in given["entry"].items() if k != "steps"}
    entry["planes"] = [{"bytes": 6, "table": given["spans"]["bytes"]}]
    packed = CODES[:, ::2] | CODES[:, 1::2] << 4
    np.testing.assert_array_equal(looked_up(record(LookedUp, entry), path)[64], np.repeat(packed, 2, -1))


DAMAGE: dict[str, Any] = {
    "rows": ("n", 4), "no rows": ("n", 0), "no planes": ("planes", []), "bytes of a plane": ("planes.0.bytes", 5),
    "length of codes": ("packed.1", 17), "table": ("planes.0.table.1", 1000), "k": ("steps.k", 13), "no k": ("steps.k", 0),
    "group": ("steps.group", 2), "no group": ("steps.group", 0), "rows of steps": ("steps.rows", 2),
    "scale": ("steps.scale.1", 8), "no number": ("steps.k", "10"), "an unknown key": ("steps.what", 1),
    "a short span": ("packed", [0]), "tensor scale": ("steps.tensor_scale", [0, 8]), "zero": ("steps.zero", [0, 6]),
    "zero table": ("steps.zero_table", [0, 8]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_plan_is_an_error(name: str, plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    where, value = DAMAGE[name]
    entry = copy.deepcopy(given["entry"])
    *parents, last = where.split(".")
    place: Any = entry
    for parent in parents:
        place = place[int(parent)] if parent.isdigit() else place[parent]
    place[int(last) if last.isdigit() else last] = value
    with pytest.raises(ArtifactError, match="plan of weights is damaged"), prefill_weights([entry], path):
        pass


def test_a_truncated_weights_file_is_an_error(plan: tuple[Path, dict[str, Any]]) -> None:
    path, given = plan
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="shorter than its index"), prefill_weights([given["entry"]], path):
        pass
