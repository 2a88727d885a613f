"""Kernels compiled when the artifact is written: found again under Triton's own hashes, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from ingot.backends.triton import prebuild
from ingot.backends.triton.aot import capability
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.prebuilt import COMPILED, offered
from ingot.backends.triton.warmup import Absent, Launch, compile_launch
from ingot.compiler import compile
from ingot.errors import IngotError
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from tests.backends.triton.examples import example
from tests.backends.triton.test_warmup import TEXT, started
from tests.frontend.models import saved, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact's folder with the kernels of a small module for Hopper."""
    made = tmp_path_factory.mktemp("artifact")
    assert prebuild.prebuild(parse_module(TEXT), ["sm_90"], made, processes=2) == []
    return made


@pytest.fixture
def hits() -> Iterator[list[bool]]:
    """Whether each compilation found its kernel."""
    import triton

    found: list[bool] = []
    with patch.object(triton.knobs.compilation, "listener", lambda *, cache_hit, **_: found.append(cache_hit)):
        yield found


def compile_each(wanted: list[Launch]) -> None:
    for launch in wanted:
        assert compile_launch(launch) == ""


def test_a_kernel_is_kept_as_code_and_what_starts_it(folder: Path) -> None:
    kept = {file.name for file in (folder / COMPILED).rglob("*") if file.is_file()}
    assert {"rms_norm_kernel.cubin", "rms_norm_kernel.json", "linear_kernel_row.cubin", "linear_kernel_few.cubin"} <= kept
    assert {name.rsplit(".")[1] for name in kept} == {"cubin", "json"}
    about = json.loads(next((folder / COMPILED).rglob("linear_kernel_row.json")).read_text())
    assert about["target"]["arch"] == 90


@pytest.mark.usefixtures("hopper")
def test_every_kernel_of_a_run_is_found(folder: Path, hits: list[bool], tmp_path: Path) -> None:
    """One row, a few, and as many as 16 divides, none of which was among the sizes compiled for."""
    wanted = [*started(1), *started(5), *started(48)]
    with offered(folder):
        compile_each(wanted)
    assert hits == [True] * 6
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    compile_each(wanted[:1])
    assert hits[-1] is False


@pytest.mark.usefixtures("hopper")
def test_what_differs_is_compiled(folder: Path, hits: list[bool]) -> None:
    """Other source, other settings, another chip."""
    import triton

    norm = started(1)[0]
    with offered(folder):
        compile_each([replace(norm, source=norm.source.replace("1e-06", "1e-05")),
                      replace(norm, settings=tuple({**dict(norm.settings), "num_warps": 8}.items()))])
        triton.runtime.driver.set_active(Absent(80))
        compile_each([norm])
    assert hits == [False] * 3


@pytest.mark.usefixtures("hopper")
def test_nothing_is_changed_where_nothing_was_compiled(tmp_path: Path) -> None:
    import triton

    with offered(tmp_path), offered(None):
        assert triton.knobs.cache.manager_class is None


def test_steps_and_prompts_of_a_decoder_are_usual() -> None:
    """Every kernel the module has is among them, and no weight is read for it."""
    made: Module = example("int4_layer")
    made.meta["kind"] = "decoder"
    names = {launch.name for launch in prebuild.usual(made)}
    written = {k.name for k in TritonModule(made, device="meta").kernels}
    assert names - {"greedy", "sample"} == written
    assert names >= {"greedy", "sample"}


def test_architectures_are_known_by_name() -> None:
    assert (capability("sm_90"), capability("100"), capability("sm_100a")) == (90, 100, 100)
    with pytest.raises(IngotError, match="unknown architecture sm_70"):
        capability("sm_70")


def test_an_artifact_comes_with_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them here; the files are the artifact's own."""
    every = prebuild.usual
    few = {"greedy", "rope_cache_write_kernel"}
    monkeypatch.setattr(prebuild, "usual", lambda module: {k.name: k for k in every(module) if k.name in few}.values())
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    model = saved(tiny("llama")[1], tmp_path / "model")
    made = compile(model, tmp_path / "out", target="triton", recipe="gpu-bf16", archs=["sm_80"])
    kept = [name.split("/")[-1] for name in made.manifest.files if name.startswith(f"{COMPILED}/")]
    assert sorted(kept) == sorted(f"{name}.{kind}" for name in few for kind in ("cubin", "json"))


def test_architectures_are_for_this_target(tmp_path: Path) -> None:
    with pytest.raises(IngotError, match="with --target triton alone"):
        compile("nothing", tmp_path / "out", archs=["sm_90"])
    with pytest.raises(IngotError, match="unknown architecture sm_1"):
        compile("nothing", tmp_path / "out", target="triton", archs=["sm_1"])
