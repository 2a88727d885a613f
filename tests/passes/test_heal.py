"""heal: what was pruned, quantised or thinned out comes nearer to what it was; the same twice, and after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.formats import FORMATS, format_named
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text import print_module
from ingot.ir.verify import verify
from ingot.passes.base import Context
from ingot.passes.contracts.contract import Check
from ingot.passes.healing import training
from ingot.passes.healing.states import residual_sums, shared_states
from ingot.passes.healing.text import divided
from ingot.passes.healing.training import rate_at, rises
from ingot.passes.journal import Journal, Section
from ingot.passes.lora.merge_lora import MergeLora
from ingot.passes.pipeline import Receipt, check_order, parse_pipeline, run_pass, run_pipeline
from ingot.testing import Decoder
from tests.passes.test_journal import Killed, killing, numbers
from tests.passes.test_rotate import LLAMA

CALIBRATION = [np.random.default_rng(s).integers(0, 24, (4, 16)) for s in range(24)]
SHORT = "tokens=64 length=16"


@pytest.fixture(scope="module")
def model() -> Module:
    return Decoder(**LLAMA | {"width": 32, "head_dim": 6, "tied": False}).module()  # type: ignore[arg-type]


def healed(model: Module, pipeline: str, *, folder: Path | None = None, check: bool = False,
           progress: Callable[[int, int, str], None] | None = None) -> tuple[Module, Receipt]:
    after = copy_module(model)
    context = Context(calibration=CALIBRATION, journal=Journal(folder, maker="ingot 1"), progress=progress)
    receipt = run_pipeline(after, parse_pipeline(pipeline), context, check=Check() if check else None)[-1]
    verify(after)
    return after, receipt


def divergence(before: Module, after: Module) -> float:
    """Mean KL on other text of the same kind, in nats."""
    from ingot.backends.torch.executor import Executor

    ids = np.random.default_rng(99).integers(0, 24, (8, 16))
    given = {"ids": ids, "pos": np.tile(np.arange(16), (8, 1))}
    p, q = (Executor(m).run(given)[0].double().log_softmax(-1) for m in (before, after))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("damage", "options"), [
    ("prune{ratio=0.4 multiple=1 repair=none}", "steps=80 lr=0.002"),
    ("prune{ratio=0.4 multiple=1 repair=none}", "steps=80 lr=0.01 rank=4"),
    ("prune{what=layers ratio=0.5 repair=none}", "steps=80 lr=0.003"),
    ("quantize{format=int2 group=16}", "steps=80 lr=0.003"),
    ("quantize{format=int3 group=16 symmetric}", "steps=80 lr=0.01 rank=4"),
    ("sparsify{pattern=2:4 method=magnitude}", "steps=80 lr=0.003")])
def test_it_comes_nearer(model: Module, damage: str, options: str) -> None:
    broken, _ = healed(model, damage)
    after, receipt = healed(model, f"{damage},heal{{{SHORT} {options}}}", check=True)
    assert divergence(model, after) < 0.85 * divergence(model, broken)
    told = receipt.details["held_out"]
    assert told["after"] < told["before"]
    assert receipt.details["steps"] == 80
    assert receipt.details["difference"]["inputs"] == "calibration"


def shape(module: Module) -> list[str]:
    """The text of a module without where its numbers come from."""
    return [line.split(" = ")[0] if line.strip().startswith("const") else line for line in print_module(module).splitlines()
            if not line.startswith("#")]


@pytest.mark.parametrize("options", ["rank=2 lr=0.01", "rank=0 lr=0.003"])
@pytest.mark.parametrize("damage", ["prune{ratio=0.4 multiple=1 repair=none}", "quantize{format=int3 group=16}"])
def test_the_graph_stays(model: Module, damage: str, options: str) -> None:
    """Low-rank additions leave nothing behind, codes stay codes of the same types."""
    broken, _ = healed(model, damage)
    after, _ = healed(model, f"{damage},heal{{{SHORT} steps=10 {options}}}")
    assert shape(after) == shape(broken)


def test_embedding_and_output_projection_learn_only_when_asked(model: Module) -> None:
    damage = "prune{ratio=0.4 multiple=1 repair=none}"
    for head, changed in (("false", set()), ("true", {"embed", "head"})):
        after, _ = healed(model, f"{damage},heal{{{SHORT} steps=20 lr=0.003 head={head}}}")
        both = numbers(model), numbers(after)
        apart = {name for name in both[0] if both[0][name] != both[1].get(name)}
        assert {name for name in ("embed", "head") if name in apart} == changed
        assert any("norm" in name for name in apart)


@pytest.mark.parametrize("options", ["", " rank=2"])
def test_zeros_stay(model: Module, options: str) -> None:
    thin, _ = healed(model, "sparsify{pattern=2:4 method=magnitude}")
    after, _ = healed(model, f"sparsify{{pattern=2:4 method=magnitude}},heal{{{SHORT} steps=20 lr=0.003{options}}}")
    for name, const in thin.consts.items():
        if const.type.rank == 2 and "mlp" in name:
            before, now = const.weight.materialize(), after.consts[name].weight.materialize()
            assert ((before == 0) <= (now == 0)).all()
            assert not np.array_equal(before, now)


# --- killed and started again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["prune{ratio=0.4 multiple=1 repair=none}", "quantize{format=int3 group=16}"])
def test_killed_it_goes_on_and_makes_the_same_bytes(model: Module, damage: str, tmp_path: Path) -> None:
    pipeline = f"{damage},heal{{{SHORT} steps=40 lr=0.01 patience=0}}"
    whole, told = healed(model, pipeline)
    assert numbers(healed(model, pipeline)[0]) == numbers(whole)
    for owner, name, at in ((training.Training, "_step", 11), (Section, "write", 3), (training.Training, "_step", 1),
                            (training.Training, "_keep", 2), (training.Training, "_step", 14)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), at))
            with pytest.raises(Killed):
                healed(model, pipeline, folder=tmp_path)
    resumed, said = healed(model, pipeline, folder=tmp_path)
    assert numbers(resumed) == numbers(whole)
    assert 16 <= said.details["resumed"] < 40
    assert said.details["curve"] == told.details["curve"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_step", None)  # what is finished is not done again
        assert numbers(healed(model, pipeline, folder=tmp_path)[0]) == numbers(whole)


def test_other_seed_other_weights(model: Module) -> None:
    damage = "prune{ratio=0.4 multiple=1 repair=none}"
    one, two = (healed(model, f"{damage},heal{{{SHORT} steps=10 lr=0.003 seed={seed}}}")[0] for seed in (0, 1))
    assert numbers(one) != numbers(two)


# --- when to stop -----------------------------------------------------------------------------------------------------


def test_a_rate_that_is_far_too_great_does_no_harm(model: Module) -> None:
    damage = "prune{ratio=0.2 multiple=1}"
    broken, _ = healed(model, damage)
    with pytest.warns(UserWarning, match="nothing better"):
        after, receipt = healed(model, f"{damage},heal{{{SHORT} steps=100 lr=3}}")
    assert receipt.sites == 0
    assert numbers(after) == numbers(broken)


@pytest.mark.parametrize(("patience", "steps"), [(2, 20), (3, 40), (0, 40)])
def test_losses_that_rise_end_a_run_at_half_of_it_at_the_earliest(model: Module, patience: int, steps: int,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "rises", lambda losses: 2)
    damage = "prune{ratio=0.4 multiple=1 repair=none}"
    _, receipt = healed(model, f"{damage},heal{{{SHORT} steps=40 lr=0.003 patience={patience}}}")
    assert receipt.details["steps"] == steps


@pytest.mark.parametrize(("losses", "count"), [([1.0], 0), ([1.0, 2.0], 1), ([1.0, 3.0, 2.0], 0), ([3.0, 1.0, 2.0, 2.5], 2)])
def test_rises_are_counted_from_the_end(losses: list[float], count: int) -> None:
    assert rises(losses) == count


def test_minutes_bound_a_run(model: Module) -> None:
    damage = "prune{ratio=0.4 multiple=1 repair=none}"
    _, receipt = healed(model, f"{damage},heal{{{SHORT} minutes=0.01 lr=0.003}}")
    assert receipt.details["steps"] >= 1
    assert receipt.details["curve"][-1][0] == receipt.details["steps"]


def test_progress_tells_the_loss(model: Module) -> None:
    said: list[tuple[int, int, str]] = []
    healed(model, f"prune{{ratio=0.4 multiple=1}},heal{{{SHORT} steps=5 lr=0.003}}",
           progress=lambda done, total, what: said.append((done, total, what)))
    losses = [(done, total) for done, total, what in said if what.startswith("loss ")]
    assert losses == [(i, 5) for i in range(5)]


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pipeline", "message"), [
    ("heal", "none of them costs anything"), ("canonicalize,heal", "none of them costs anything"),
    ("prune,merge-lora{adapter=a},heal", "put merge-lora before prune"),
    ("prune,take-logits,insert-kv-cache,heal", "cannot follow insert-kv-cache"),
    ("prune,heal{steps=0}", "at least one step"), ("prune,heal{lr=0}", "lr must be positive"),
    ("prune,heal{tokens=4}", "tokens at least length"), ("prune,heal{rank=-1}", "not negative")])
def test_mistakes_are_refused(model: Module, pipeline: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MergeLora, "look", lambda p: None)
    with pytest.raises(PassError) as caught:
        check_order(parse_pipeline(pipeline), model, has_calibration=True)
    assert message in str(caught.value)


def test_calibration_text_is_needed(model: Module) -> None:
    with pytest.raises(PassError, match="needs calibration text"):
        check_order(parse_pipeline("quantize,heal"), model)


def test_the_teacher_is_what_stood_before_the_first_loss(model: Module) -> None:
    context = Context(calibration=CALIBRATION)
    after = copy_module(model)
    pipeline = f"canonicalize,prune{{ratio=0.4 multiple=1}},quantize{{format=int3 group=16}},heal{{{SHORT} steps=5}}"
    run_pipeline(after, parse_pipeline(pipeline), context)
    assert context.teacher is not None
    assert context.teacher.history == ["canonicalize"]
    assert divergence(model, context.teacher) == 0


def test_no_teacher_is_kept_for_nobody(model: Module) -> None:
    context = Context(calibration=CALIBRATION)
    run_pipeline(copy_module(model), parse_pipeline("prune{ratio=0.4 multiple=1}"), context)
    assert context.teacher is None


def test_one_may_be_given(model: Module) -> None:
    broken, _ = healed(model, "quantize{format=int2 group=16}")
    before = divergence(model, broken)
    run_pass(broken, parse_pipeline(f"heal{{{SHORT} steps=40 lr=0.003}}")[0], Context(calibration=CALIBRATION, teacher=model))
    assert divergence(model, broken) < before


def test_it_needs_text_to_judge_by(model: Module) -> None:
    with pytest.raises(PassError, match="too little calibration text"):
        run_pass(copy_module(model), parse_pipeline("heal")[0],
                 Context(calibration=[np.zeros((1, 9), np.int64)], teacher=model))


# --- parts ------------------------------------------------------------------------------------------------------------


def test_states_are_found_by_weights(model: Module) -> None:
    assert len(residual_sums(model.main)) == 4
    shorter, _ = healed(model, "prune{what=layers ratio=0.5 repair=none}")
    pairs = shared_states(shorter, model)
    assert len(pairs) == 2
    gone = {name for name in residual_sums(model.main) if name not in residual_sums(shorter.main)}
    assert len({name.split(".")[0] for name in gone}) == 1
    fused, _ = healed(model, "fuse,quantize{format=int8 group=16}")
    assert [theirs for _, theirs in shared_states(fused, model)] == list(residual_sums(model.main).values())


def test_text_is_held_out_evenly() -> None:
    rows = [np.full((1, 64 + i % 3), i) for i in range(40)]
    text = divided(rows, length=32)
    assert text.held_out.shape == (5, 32)
    assert not set(text.held_out[:, 0]) & set(text.learned[:, 0])
    assert len(text.learned) == 2 * 35
    batches = np.concatenate([text.batch(step, count=10, seed=3)[:, 0] for step in range(7)])
    assert sorted(batches) == sorted(text.learned[:, 0])
    assert not np.array_equal(batches, np.concatenate([text.batch(step, count=10, seed=4)[:, 0] for step in range(7)]))
    single = divided([np.arange(70)[None]], length=32)
    assert single.learned.tolist() == [list(range(32))]
    assert single.held_out.tolist() == [list(range(32, 64))]


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(i / 200) for i in range(201)]
    assert rates[0] == rates[200] == 0
    assert max(rates) == rates[20] == 1
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_is_that_of_the_format(name: str, symmetric: bool) -> None:
    """The forward pass gives what the codes decode to; what may move is not moved at first."""
    import torch

    from ingot.backends.torch.straight_through import Rounding
    from ingot.passes.quantization.rtn import rounded

    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 70)).astype(np.float32)
    fmt = format_named(name)
    group = 16 if 16 in fmt.groups else fmt.groups[0] or 70
    coded = rounded(w, fmt, group=group, symmetric=symmetric)
    zero = None if coded.scales.zero is None else torch.from_numpy(coded.scales.zero)
    how, step = Rounding(fmt, group, zero), torch.from_numpy(coded.scales.step)
    np.testing.assert_array_equal(how(torch.from_numpy(w), step).numpy(), coded.decoded())
    far = torch.from_numpy(w + rng.normal(size=w.shape).astype(np.float32))
    latent = how.within(far, torch.from_numpy(coded.decoded()), step)
    np.testing.assert_array_equal(how(latent, step).numpy(), coded.decoded())
    assert float((latent - far).abs().mean()) < float((torch.from_numpy(coded.decoded()) - far).abs().mean())


def test_gradients_go_straight_through_and_to_steps() -> None:
    """By the formulas of LSQ: 1 inside the grid and 0 beyond; value - x inside, the end of the grid beyond."""
    import torch

    from ingot.backends.torch.straight_through import Rounding

    w = torch.tensor([[0.3, -0.7, 5.0, -9.0]], requires_grad=True)
    step = torch.tensor([[0.5]], requires_grad=True)
    Rounding(format_named("int4"), 4, None)(w, step).backward(torch.ones(1, 4))  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert step.grad is not None
    assert w.grad.tolist() == [[1, 1, 0, 0]]
    assert float(step.grad) == pytest.approx((1 - 0.6) + (-1 + 1.4) + 7 - 8)


def test_codes_are_written_back_as_they_were_seen(model: Module) -> None:
    """What training saw of a quantised model is what the written one computes."""
    after, receipt = healed(model, f"quantize{{format=int3 group=16}},heal{{{SHORT} steps=20 lr=0.003}}")
    assert any(isinstance(op, Dequantize) for op in after.ops)
    context = Context(calibration=CALIBRATION, teacher=model)
    with pytest.warns(UserWarning, match="nothing better"):
        again = run_pass(copy_module(after), parse_pipeline(f"heal{{{SHORT} steps=1 lr=0.000000000001}}")[0], context)
    assert again.details["held_out"]["before"] == pytest.approx(receipt.details["held_out"]["after"], rel=1e-5)
