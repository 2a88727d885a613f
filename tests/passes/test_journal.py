"""The journal of finished weights: a run that was interrupted goes on where it was and makes the same codes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ingot.errors import ArtifactError, PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.types import TensorType, f8e4m3, f32, u4
from ingot.ir.weights import FileWeight
from ingot.passes import journal as journal_module
from ingot.passes.base import Context
from ingot.passes.journal import Journal, Section, digest
from ingot.passes.pipeline import Receipt, parse_pipeline, run_pipeline
from ingot.passes.quantization import awq, sequential
from ingot.testing import Decoder
from tests.passes.test_rotate import LLAMA

CALIBRATION = [np.random.default_rng(s).integers(0, 24, (4, 16)) for s in range(3)]
GPTQ = "quantize{format=int4 group=16 method=gptq}"


@pytest.fixture(scope="module")
def model() -> Module:
    return Decoder(**LLAMA | {"width": 32, "head_dim": 6, "tied": False, "layers": 3}).module()  # type: ignore[arg-type]


def compressed(model: Module, folder: Path | None, *, pipeline: str = GPTQ, maker: str = "ingot 1",
               calibration: list[np.ndarray] = CALIBRATION) -> tuple[Module, Receipt]:
    after = copy_module(model)
    context = Context(calibration=calibration, journal=Journal(folder, maker=maker))
    return after, run_pipeline(after, parse_pipeline(pipeline), context)[-1]


def numbers(module: Module) -> dict[str, tuple[str, bytes]]:
    arrays = {name: const.weight.materialize() for name, const in module.consts.items()}
    return {name: (f"{a.dtype}{a.shape}", a.tobytes()) for name, a in arrays.items()}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def killing(call: Callable[..., object], at: int) -> Callable[..., object]:
    """`call`, but the process ends at the `at`-th one, from 1, before it does anything."""
    calls = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("fmt", ["int4 group=16", "nvfp4", "nf4"])
def test_killed_at_ten_points_it_makes_the_same_codes(model: Module, fmt: str, tmp_path: Path) -> None:
    """While a weight is computed, before it is kept, while it is written, before it gets its name, and again and again."""
    pipeline = f"quantize{{format={fmt} method=gptq}}"
    whole, receipt = compressed(model, None, pipeline=pipeline)
    points = [(sequential, "_coded"), (Section, "write"), (journal_module.os, "fsync"), (journal_module.os, "replace")]
    choose = random.Random(0)
    kept = [0]
    for _ in range(10):
        owner, name = choose.choice(points)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), choose.randint(1, 3)))
            with pytest.raises(Killed):
                compressed(model, tmp_path, pipeline=pipeline)
        kept.append(len(list(tmp_path.glob("*/*.npz"))))
    assert kept == sorted(kept)
    assert 5 < kept[-1] < receipt.sites
    resumed, said = compressed(model, tmp_path, pipeline=pipeline)
    assert numbers(resumed) == numbers(whole)
    assert said.details.pop("resumed") == kept[-1]
    assert said.details == receipt.details


def test_what_is_kept_is_not_computed_again(model: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = compressed(model, tmp_path)
    monkeypatch.setattr(sequential, "_coded", None)
    monkeypatch.setattr(sequential, "gather", None)
    again, receipt = compressed(model, tmp_path)
    assert numbers(again) == numbers(whole)
    assert receipt.details["resumed"] == receipt.sites


def test_a_search_is_not_made_again(model: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """awq keeps its factors, and the quantisation behind it has a section of its own."""
    pipeline = f"awq,{GPTQ}"
    whole, receipt = compressed(model, None, pipeline=pipeline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "_coded", killing(sequential._coded, 4))
        with pytest.raises(Killed):
            compressed(model, tmp_path, pipeline=pipeline)
    assert [path.name[:3] for path in sorted(tmp_path.iterdir())] == ["000", "001"]
    monkeypatch.setattr(awq, "_best", None)
    again, resumed = compressed(model, tmp_path, pipeline=pipeline)
    assert numbers(again) == numbers(whole)
    assert resumed.details.pop("resumed") == 3
    assert resumed.details == receipt.details


@pytest.mark.parametrize("change", [
    {"pipeline": GPTQ.replace("16", "32")}, {"maker": "ingot 2"}, {"calibration": CALIBRATION[:2]},
    {"calibration": [CALIBRATION[0][::-1], *CALIBRATION[1:]]}, {"pipeline": f"rotate,{GPTQ}"}])
def test_other_work_begins_anew(model: Module, tmp_path: Path, change: dict[str, object]) -> None:
    """And what was kept for the same place in another pipeline is removed, which is said."""
    compressed(model, tmp_path)
    before = [path.name for path in tmp_path.iterdir()]
    if "rotate" in str(change):
        _, receipt = compressed(model, tmp_path, **change)  # type: ignore[arg-type]
    else:
        with pytest.warns(UserWarning, match="begins anew"):
            _, receipt = compressed(model, tmp_path, **change)  # type: ignore[arg-type]
        assert not set(before) & {path.name for path in tmp_path.iterdir()}
    assert "resumed" not in receipt.details


def test_other_numbers_are_another_model(model: Module) -> None:
    other = copy_module(model)
    const = next(iter(other.consts.values()))
    array = const.weight.materialize().copy()
    array.reshape(-1)[0] += 1e-6
    other.set_weight(const, type(const.weight)(array, const.weight.source))  # type: ignore[call-arg, attr-defined]
    assert digest(model, "", "", []) == digest(copy_module(model), "", "", []) != digest(other, "", "", [])


def test_a_file_written_anew_is_another_model(tmp_path: Path) -> None:
    import os

    from safetensors.numpy import save_file

    def one(path: Path) -> Module:
        module = Module()
        module.add_const("w", FileWeight(path, "w", TensorType(f32, (2,))))
        return module

    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        save_file({"w": np.full(2, value, np.float32)}, tmp_path / folder / "m.safetensors")
        os.utime(tmp_path / folder / "m.safetensors", ns=(0, value * 10**9))
    a, b = (digest(one(tmp_path / folder / "m.safetensors"), "", "", []) for folder in "ab")
    assert a != b
    (tmp_path / "b/m.safetensors").unlink()
    (tmp_path / "a").rename(tmp_path / "c")
    assert digest(one(tmp_path / "c/m.safetensors"), "", "", []) == a


def test_arrays_and_facts_come_back(tmp_path: Path) -> None:
    types = {"packed": TensorType(u4, (3, 4)), "scale": TensorType(f8e4m3, (3, 1)), "top": TensorType(f32, ())}
    arrays = {"packed": np.arange(12).astype(u4.numpy).reshape(4, 3).T, "scale": np.ones((3, 1), f8e4m3.numpy),
              "top": np.array(0.1, np.float32)}
    section = Section(tmp_path / "s")
    assert section.read("a/b c", types) is None
    section.write("a/b c", arrays, {"lost": 0.1 + 0.2})
    found, facts = section.read("a/b c", types) or ({}, {})
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert facts == {"lost": 0.1 + 0.2}
    assert section.read("a/b c", {**types, "packed": TensorType(u4, (4, 4))}) is None
    [file] = (tmp_path / "s").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert section.read("a/b c", types) is None


def test_without_a_folder_nothing_is_kept() -> None:
    section = Journal().section(Module(), "", [])
    section.write("a", {"x": np.ones(2)}, {})
    assert section.read("a", {}) is None
    Journal().remove()


def test_a_full_disk_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.np, "savez", full)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        Section(tmp_path / "s").write("a", {"x": np.ones(2)}, {})
    assert "goes on from here" in str(caught.value.hint)
    assert not list((tmp_path / "s").iterdir())


def test_errors_leave_what_is_kept(model: Module, tmp_path: Path) -> None:
    """A mistake further down the pipeline costs none of the work before it."""
    def refuse(*args: object) -> None:
        raise PassError("not like this")

    context = Context(calibration=CALIBRATION, journal=Journal(tmp_path, maker="ingot 1"))
    with pytest.raises(PassError, match="not like this"):
        run_pipeline(copy_module(model), parse_pipeline(GPTQ), context, on_stage=refuse)
    _, receipt = compressed(model, tmp_path)
    assert receipt.details["resumed"] == receipt.sites
