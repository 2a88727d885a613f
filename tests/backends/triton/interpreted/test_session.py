"""Checkpoint to session for the target triton: prompts, steps, rows, sampling; the same logits as the torch executor."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from ingot.compiler import compile, load, optimize, reference_logits
from ingot.errors import ArtifactError, IngotError
from ingot.passes.recipes import recipe
from ingot.runtime.generate import GenerateOptions, generate
from ingot.runtime.sampling import SamplingOptions
from ingot.runtime.session import Session
from ingot.testing import inputs_for
from ingot.triton_session import TritonSession
from tests.backends.triton.interpreted.check import agree
from tests.frontend.models import VOCAB, saved, tiny

IDS = np.random.default_rng(0).integers(0, VOCAB, size=(2, 9))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama")[1], tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(checkpoint, tmp_path_factory.mktemp("out") / "triton", target="triton", dtype="f32").path


@pytest.fixture(params=[0, 4], ids=["contiguous", "pages of 4"])
def session(artifact: Path, request: pytest.FixtureRequest) -> TritonSession:
    with patch("ingot.backends.triton.paging.PAGE", request.param):
        return TritonSession.open(artifact, device="cpu")


def test_prefill_and_steps_give_the_logits_of_the_whole(session: TritonSession, checkpoint: Path) -> None:
    wanted = reference_logits(checkpoint)(IDS)
    assert np.abs(session.logits(IDS) - wanted).max() < 1e-4
    first = session.prefill([IDS[0, :3], IDS[1, :5]])
    assert np.abs(first - np.stack([wanted[0, 2], wanted[1, 4]])).max() < 1e-4
    got = session.step(IDS[[0, 1], [3, 5]])
    assert np.abs(got - np.stack([wanted[0, 3], wanted[1, 5]])).max() < 1e-4
    assert session.lengths.tolist() == [4, 6]
    session.rewind([1, 2])
    session.select([1])
    assert np.abs(session.step(IDS[[1], [4]])[0] - wanted[1, 4]).max() < 1e-4


def test_greedy_on_the_device_is_greedy_on_the_host(session: TritonSession) -> None:
    options = GenerateOptions(max_new_tokens=3)
    texts = generate(session, None, [IDS[0, :5].tolist(), IDS[1, :2].tolist()], options).results
    first = session.prefill([IDS[0, :5], IDS[1, :2]]).argmax(1)
    rest = session.generate_greedy(first, 2)
    assert [list(r.ids) for r in texts] == np.column_stack([first, rest]).tolist()


def test_tokens_are_drawn_on_the_device(session: TritonSession) -> None:
    """Each row by its own numbers, whatever is beside it; logits stay where they are."""
    prompts = [IDS[0, :5].tolist(), IDS[1, :2].tolist()]
    options = GenerateOptions(max_new_tokens=3, sampling=SamplingOptions(temperature=2.0, top_k=9, seed=7))
    with patch.object(TritonSession, "step", side_effect=AssertionError):
        both = generate(session, None, prompts, options).results
        alone = generate(session, None, prompts[:1], options).results
        other = generate(session, None, prompts[:1], replace(options, sampling=replace(options.sampling, seed=8))).results
    assert alone[0].ids == both[0].ids != other[0].ids


def test_a_repetition_penalty_is_kept_by_the_host(session: TritonSession) -> None:
    options = GenerateOptions(max_new_tokens=5, sampling=SamplingOptions(temperature=0, repetition_penalty=1e4))
    (result,) = generate(session, None, [IDS[0, :2].tolist()], options).results
    assert len({*result.ids, *IDS[0, :2].tolist()}) == 5 + len({*IDS[0, :2].tolist()})


def test_caches_grow_and_keep_what_they_hold(session: TritonSession, checkpoint: Path) -> None:
    with patch("ingot.triton_session.SMALLEST", 8):
        session.prefill([IDS[0, :8]])
        before = session.cache_bytes
        logits = session.step([IDS[0, 8]])
    assert session.cache_bytes == 2 * before
    assert np.abs(logits[0] - reference_logits(checkpoint)(IDS)[0, -1]).max() < 1e-4


def test_rows_kept_twice_go_on_apart(session: TritonSession, checkpoint: Path) -> None:
    """Two continuations of one prompt, then one of them back to the prompt and on with the other's tokens."""
    wanted = reference_logits(checkpoint)
    session.prefill([IDS[0, :6]])
    session.select([0, 0])
    both = np.stack([IDS[0], np.concatenate([IDS[0, :6], IDS[1, 6:]])])
    for at in (6, 7, 8):
        assert np.abs(session.step(both[:, at]) - wanted(both)[:, at]).max() < 1e-4
    session.rewind([0, 4])
    assert np.abs(session.prefill([IDS[1, :1], IDS[0, 5:]], append=True)[1] - wanted(IDS)[0, -1]).max() < 1e-4
    session.select([1, 0])
    longer = np.concatenate([IDS[0], IDS[1, :1]])
    assert np.abs(session.step([3, 3])[1] - wanted(np.append(longer, 3)[None])[0, -1]).max() < 1e-4


def test_pages_follow_what_rows_hold(artifact: Path) -> None:
    """In pages, a short row beside a long one takes little, and a context no row fills takes nothing."""
    with patch("ingot.backends.triton.paging.PAGE", 4):
        session = TritonSession.open(artifact, device="cpu")
    session.prefill([IDS[0, :9], IDS[1, :1]])
    (per_page,) = {t[0].nbytes for t in session._held.caches.tensors.values()}
    assert session.cache_bytes <= 8 * per_page * len(session._held.caches.tensors)
    assert session._held.capacity >= session.context


def test_settings_that_were_measured_are_kept_with_the_artifact(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The last choice of every kernel is the fastest here; whoever opens the artifact has it, and the same logits."""
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    times = itertools.count(start=1000, step=-1)
    session = TritonSession.open(copy, device="cpu")
    file = session.tune(prompt=5, seconds=lambda call: next(times))
    table = json.loads(file.read_text())
    assert {key.split("/")[1] for key in table} >= {"linear_kernel_row", "linear_kernel_few", "attention_kernel_split"}
    again = TritonSession.open(copy, device="cpu")
    chosen = [again._compiled.tuner.settings(k, {"B": 1, "S": 1, "N": 1, "T": 5}) for k in again._compiled.kernels if k.choices]
    assert any(chosen)
    assert np.abs(again.logits(IDS[:1]) - reference_logits(checkpoint)(IDS[:1])).max() < 1e-4


def test_int4_in_bf16_runs_and_is_near(checkpoint: Path, tmp_path: Path) -> None:
    made = compile(checkpoint, tmp_path / "int4", target="triton",
                   passes="clean,recognize,clean,fuse,take-logits,insert-kv-cache,quantize{format=int8 group=16},clean")
    session = TritonSession.open(made.path, device="cpu")
    wanted = reference_logits(checkpoint)(IDS)
    got = session.logits(IDS)
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
    assert (made.path / "kernels.py").read_text().count("words_ptr")


@pytest.mark.parametrize("name", ["gpu-nvfp4", "gpu-fp8"])
def test_recipes_of_small_floats(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """Codes of linears are decoded in kernels, steps of one byte as well; nothing is left to torch."""
    made = compile(checkpoint, tmp_path / name, target="triton", recipe=name)
    session = TritonSession.open(made.path, device="cpu")
    wanted = reference_logits(checkpoint)(IDS)
    assert np.abs(session.logits(IDS) - wanted).max() < (0.4 if name == "gpu-nvfp4" else 0.1) * np.abs(wanted).max()
    assert not session._compiled.fallbacks
    assert ("tensor_ptr" in (made.path / "kernels.py").read_text()) == (name == "gpu-nvfp4")


def test_errors_say_what_to_do(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(IngotError, match="runs on a GPU"):
        TritonSession.open(artifact)
    with pytest.raises(ArtifactError, match="for the target triton"):
        Session.open(artifact)
    with pytest.raises(IngotError, match="unknown target"):
        compile(checkpoint, tmp_path / "x", target="cuda")


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "convnext"])
def test_architectures(name: str, tmp_path: Path) -> None:
    """Decoders with a cache and a vision model: one run each."""
    module = load(saved(tiny(name)[1], tmp_path / "model"))
    optimize(module, recipe("fp32", kind=str(module.meta.get("kind", "other"))))
    given = {"pos": np.tile(np.arange(5), (2, 1)), "take": np.tile([1, 4], (2, 1))}
    inputs = inputs_for(module, np.random.default_rng(0), {"B": 2, "S": 5, "N": 2, "T": 8}) | given
    agree(module, [inputs[p.hint or ""] for p in module.main.params], limit=1e-4)
