"""prune: what goes, what is left computes, how it is refitted, and that it runs with widths of its own in every layer."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ingot.compiler import compile as ingot_compile
from ingot.errors import NothingMatched, PassError
from ingot.frontend.huggingface import import_model
from ingot.ir.copy import copy_module
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.value import Const
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.contracts.contract import Check
from ingot.passes.pipeline import Receipt, parse_pipeline, run_pipeline
from ingot.passes.pruning.depth import blocks, leave_out
from ingot.passes.pruning.elimination import DAMPING, Elimination, Reader
from ingot.passes.pruning.groups import Group
from ingot.passes.pruning.ranking import allocate, by_elimination, by_score
from ingot.passes.pruning.refit import Pair, solve
from ingot.passes.pruning.spaces import Space
from ingot.runtime.session import Session
from tests.frontend.examples import imported, inputs_for
from tests.frontend.models import VOCAB, saved, tiny

TRACE = "clean,recognize,clean"


def text(count: int = 6, tokens: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, VOCAB, (1, tokens)) for _ in range(count)]


def pruned(name: str, pipeline: str, *, check: bool = False) -> tuple[Module, Receipt]:
    module = copy_module(imported(name)[0])
    run_pipeline(module, parse_pipeline(TRACE))
    receipts = run_pipeline(module, parse_pipeline(pipeline), Context(calibration=text()), check=Check() if check else None)
    verify(module)
    return module, receipts[-1]


def recognized(name: str, pipeline: str) -> Module:
    module = copy_module(imported(name)[0])
    run_pipeline(module, parse_pipeline(pipeline))
    return module


@cache
def three_blocks(name: str) -> Module:
    return import_model(tiny(name, **{{"gpt2": "n_layer"}.get(name, "num_hidden_layers"): 3})[1])


def distance(before: Module, after: Module) -> float:
    """Mean squared difference of the logits on calibration text, over the variance of the first ones."""
    from ingot.backends.torch.executor import Executor

    total = size = 0.0
    for ids in text():
        given = {"ids": ids, "pos": np.arange(ids.shape[1])[None]}
        a, b = (Executor(m).run(given)[0].numpy() for m in (before, after))
        total += float(np.square(a - b).sum())
        size += float(np.square(a - a.mean()).sum())
    return total / size


@pytest.mark.parametrize("pipeline", [
    "prune{ratio=0.25 multiple=4}", "prune{what=mlp+heads ratio=0.3 multiple=4 uniform=true}",
    "prune{what=kv ratio=0.5 repair=all}", "prune{what=width ratio=0.25 multiple=4}",
    "prune{ratio=0.25 importance=taylor repair=mean multiple=4}",
    "prune{what=mlp+heads ratio=0.3 importance=flap bias=true multiple=4}", "prune{what=layers ratio=0.5 repair=all}",
    "fuse,prune{what=layers ratio=0.5 repair=all}", "fuse,prune{what=mlp+heads ratio=0.3 multiple=4}",
    "prune{ratio=0.25 importance=magnitude repair=none multiple=8}"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_kind_of_cut(name: str, pipeline: str) -> None:
    if name == "gpt2":
        pipeline = pipeline.replace("what=kv", "what=heads")
    _, receipt = pruned(name, pipeline, check=True)
    assert receipt.parameters_after < receipt.parameters_before
    assert receipt.details["difference"]["relative"] < 2
    if "what=layers" not in pipeline:
        assert receipt.details["ratio"] == pytest.approx(float(pipeline.split("ratio=")[1][:4].rstrip("} ")), abs=0.17)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_better_repair_is_nearer(name: str) -> None:
    whole = copy_module(imported(name)[0])
    found = {repair: distance(whole, pruned(name, f"prune{{ratio=0.4 multiple=4 importance=wanda repair={repair}}}")[0])
             for repair in ("none", "mean", "fit")}
    assert found["fit"] < found["mean"] < found["none"]


def test_widths_are_multiples() -> None:
    module, receipt = pruned("llama", "prune{ratio=0.3 multiple=8}")
    widths = {module.consts[f"model.layers.{i}.mlp.down_proj.weight"].type.dims[1] for i in range(2)}
    assert all(width % 8 == 0 for width in widths if isinstance(width, int))
    assert {left for _, left in receipt.details["widths"].values()} == widths


def test_uniform_takes_the_same_everywhere() -> None:
    _, receipt = pruned("llama", "prune{ratio=0.25 multiple=4 uniform=true}")
    assert set(map(tuple, receipt.details["widths"].values())) == {(48, 36)}


def test_flap_compares_layers_by_what_is_usual_in_each() -> None:
    """Weights of the last layer a hundred times as large change nothing about what goes where, as they do by plain products."""
    widths = {}
    for importance in ("flap", "wanda"):
        for factor in (1, 100):
            module = recognized("llama", TRACE)
            const = module.consts["model.layers.1.mlp.down_proj.weight"]
            const.weight = ArrayWeight(const.weight.materialize() * np.float32(factor))
            pipeline = f"prune{{ratio=0.25 multiple=4 importance={importance} repair=none}}"
            receipt = run_pipeline(module, parse_pipeline(pipeline), Context(calibration=text()))[-1]
            widths[importance, factor] = receipt.details["widths"]
    assert widths["flap", 1] == widths["flap", 100]
    assert widths["wanda", 1] != widths["wanda", 100]


def test_only_and_skip_choose_by_name() -> None:
    module, _ = pruned("llama", "prune{ratio=0.25 multiple=4 skip=model.layers.0.*}")
    assert [module.consts[f"model.layers.{i}.mlp.up_proj.weight"].type.dims[0] for i in range(2)] == [48, 36]
    module, _ = pruned("llama", "prune{ratio=0.25 multiple=4 only=*.0.mlp.up_proj.weight}")
    assert [module.consts[f"model.layers.{i}.mlp.up_proj.weight"].type.dims[0] for i in range(2)] == [36, 48]


@pytest.mark.parametrize(("pipeline", "message"), [
    ("prune{ratio=1}", "ratio between 0 and 1"), ("prune{what=mlp+layers}", "taken out alone"), ("prune{what=ears}", "ears"),
    ("prune{what=kv+heads ratio=0.5}", "two passes"), ("prune{skip=nothing}", "no weight is named nothing"),
    ("quantize{format=int8 group=0},prune", "cannot follow quantize"),
    ("take-logits,insert-kv-cache,prune", "cannot follow insert-kv-cache")])
def test_mistakes_are_refused(pipeline: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        pruned("llama", pipeline)
    assert message in str(caught.value)


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(NothingMatched):
        pruned("llama", "prune{what=conv}")


def test_convolutions_are_cut_by_weights_alone() -> None:
    module = copy_module(imported("resnet")[0])
    receipts = run_pipeline(module, parse_pipeline(f"{TRACE},prune{{what=conv importance=magnitude repair=none multiple=2}}"))
    assert receipts[-1].parameters_after < receipts[-1].parameters_before
    with pytest.raises(PassError, match="no linear reads"):
        run_pipeline(module, parse_pipeline("prune{what=conv}"), Context(calibration=text()))


@pytest.mark.parametrize(("name", "count"), [("llama", 2), ("gpt_neox", 2), ("gemma2", 2), ("bert", 2), ("vit", 2),
                                              ("resnet", 0)])
def test_blocks(name: str, count: int) -> None:
    """As many, of the same weights, where sums and norms are fused and where they are not."""
    found = [blocks(recognized(name, pipeline).main) for pipeline in (TRACE, f"{TRACE},fuse")]
    for each in found:
        assert len(each) == count
        assert all(a.last is b.first for a, b in itertools.pairwise(each))
    assert [b.parameters for b in found[0]] == [b.parameters for b in found[1]]


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_blocks_are_left_out_of_fused_graphs(name: str, gone: tuple[int, ...]) -> None:
    """What is left computes what it does without fusion, and the ops of a block are gone."""
    results = []
    for pipeline in (TRACE, f"{TRACE},fuse"):
        module = copy_module(three_blocks(name))
        run_pipeline(module, parse_pipeline(pipeline))
        each, before = blocks(module.main), len(module.main.ops)
        leave_out(module.main, [each[i] for i in gone])
        verify(module)
        assert before - len(module.main.ops) > 8 * len(gone)
        results.append(run(module, inputs_for(module))[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_the_block_that_does_least_goes() -> None:
    module = recognized("llama", TRACE)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        const = module.consts[f"model.layers.0.{name}.weight"]
        const.weight = type(module.consts["model.rotary_emb.inv_freq"].weight)(const.weight.materialize() * 1e-4)  # type: ignore
    before = copy_module(module)
    receipt = run_pipeline(module, parse_pipeline("prune{what=layers ratio=0.5}"), Context(calibration=text()))[-1]
    assert receipt.details["left_out"] == [0]
    assert distance(before, module) < 1e-4
    assert not any(name.startswith("model.layers.0") for name in module.consts)


def test_pruned_models_run_with_widths_of_their_own(tmp_path: Path) -> None:
    """Compiled, every layer with other numbers of channels and key heads; decoding in steps equals the whole."""
    checkpoint = saved(tiny("llama", num_attention_heads=8, num_key_value_heads=4)[1], tmp_path / "model")
    np.savez(tmp_path / "text.npz", all=np.concatenate(text()))
    whole = ingot_compile(checkpoint, tmp_path / "whole")
    passes = f"{TRACE},prune{{what=mlp+kv ratio=0.4 multiple=4}},fuse,take-logits,insert-kv-cache,clean"
    done = ingot_compile(checkpoint, tmp_path / "out", passes=passes, calib=tmp_path / "text.npz")
    receipt = next(r for r in done.receipts if r.stage.startswith("prune"))
    assert len(set(map(tuple, receipt.details["widths"].values()))) > 2
    assert sum(done.manifest.files.values()) < sum(whole.manifest.files.values())
    session = Session.open(tmp_path / "out")
    ids = text(1, 12)[0][0]
    full = session.logits(ids[None])[0]
    steps = [session.prefill([ids[:5]])[0].copy(), *(session.step(np.array([i]))[0].copy() for i in ids[5:])]
    np.testing.assert_allclose(np.stack(steps), full[4:], rtol=1e-4, atol=1e-4)


# --- algorithms on arrays ---------------------------------------------------------------------------------------------


def moments(rng: np.random.Generator, k: int, rank: int) -> np.ndarray:
    x = rng.normal(size=(400, rank)) @ rng.normal(size=(rank, k)) + 0.1 * rng.normal(size=(400, k))
    return (x.T @ x / 400).astype(np.float32)


def lost(w: np.ndarray, h: np.ndarray, left: np.ndarray) -> float:
    """What W loses on its input when only some columns are left, fitted by least squares."""
    fitted = np.linalg.solve(h[np.ix_(left, left)], (w @ h)[:, left].T).T
    error = w.astype(np.float64).copy()
    error[:, left] -= fitted
    return float(np.vdot(error @ h, error))


def test_elimination_loses_what_least_squares_does() -> None:
    rng = np.random.default_rng(0)
    w, h = rng.normal(size=(5, 12)).astype(np.float32), moments(rng, 12, 6)
    h += np.eye(12, dtype=np.float32)
    damped = h + DAMPING * h.diagonal().mean() * np.eye(12)
    state = Elimination([Reader(w, h, np.arange(12) // 2)], 6)
    total = state.remove(np.array([1])) + state.remove(np.array([4, 0]))
    assert total == pytest.approx(lost(w, damped, np.array([4, 5, 6, 7, 10, 11])), rel=1e-4)
    assert np.isinf(state.costs()[[0, 1, 4]]).all()


def test_elimination_spares_what_others_cannot_make_up_for() -> None:
    """Two copies of one channel, larger than the rest: one of them costs nothing."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 4)) * [3, 1, 1, 1]
    x = np.concatenate([x, x[:, :1]], 1)
    reader = Reader(np.ones((3, 5), np.float32), (x.T @ x / 500).astype(np.float32), np.arange(5))
    first = by_elimination([reader], 5).steps[0][0]
    assert first in (0, 4)
    assert by_score(np.square(x).sum(0)).steps[0][0] not in (0, 4)


def test_blocks_lose_as_many_units_each() -> None:
    rng = np.random.default_rng(2)
    reader = Reader(rng.normal(size=(4, 12)).astype(np.float32), moments(rng, 12, 12), np.arange(12) // 2)
    ranking = by_elimination([reader], 6, blocks=2)
    assert all(sorted(step // 3) == [0, 1] for step in ranking.steps)


def test_solve_finds_the_least_squares_weight() -> None:
    rng = np.random.default_rng(3)
    before, x = rng.normal(size=(900, 6)), np.empty((900, 4))
    x[:] = before[:, :4] + 0.3 * before[:, 2:] + 1
    w = rng.normal(size=(3, 6)).astype(np.float32)
    mean, mean_before = x.mean(0), before.mean(0)
    xc, bc = x - mean, before - mean_before
    pair = Pair(mean, mean_before, xc.T @ xc / 900, bc.T @ xc / 900, None, None, bc.T @ bc / 900)
    found, bias = solve(pair, w, w[:, :4], ridge=0, free_mean=True)
    wanted = np.linalg.lstsq(np.c_[x, np.ones(900)], before @ w.T, rcond=None)[0].T
    np.testing.assert_allclose(np.c_[found, bias], wanted, rtol=1e-4, atol=1e-4)
    plain, _ = solve(pair, w, w[:, :4], ridge=0, free_mean=False)
    np.testing.assert_allclose(plain, np.linalg.lstsq(x, before @ w.T, rcond=None)[0].T, rtol=1e-4, atol=1e-4)
    assert pair.error(w, found) <= pair.error(w, w[:, :4])


def test_equal_losses_are_no_trouble() -> None:
    """Units that matter alike go from one group after the other, down to the last step."""
    chosen = [Group("mlp", 8, 1, Space(8)) for _ in range(3)]
    for group in chosen:
        group.members[Const("w", ArrayWeight(np.zeros((8, 2), np.float32))), 0] = np.arange(8)
    ranked = {group: by_score(np.zeros(8)) for group in chosen}
    assert sum(allocate(ranked, ratio=0.5, multiple=2, uniform=False).values()) == 12
    assert set(allocate(ranked, ratio=0.99, multiple=4, uniform=True).values()) == {4}
