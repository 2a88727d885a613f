"""Formats within a budget: the choice, what rounding is expected to cost, and the pass that puts both together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ingot.errors import PassError
from ingot.ir.copy import copy_module
from ingot.ir.formats import format_named
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.quantization.allot import Choice, allot, ladder
from ingot.passes.quantization.scheme import Scheme
from ingot.passes.quantization.sensitivity import sensitivities
from ingot.passes.rotation.untie import label
from ingot.testing import Decoder

CALIBRATION = [np.random.default_rng(s).integers(0, 24, (1, 48)) for s in range(8)]
TEST = np.random.default_rng(99).integers(0, 24, (16, 16))


def decoder(**changes: object) -> Module:
    given = {"layers": 2, "place": "pre", "final_norm": True, "mlp": "gated", "activation": "silu", "kv_heads": 2, "group": 2,
             "positions": "rope", "width": 32, "head_dim": 6, "vocab": 24, "tied": False}
    return Decoder(**given | changes).module()  # type: ignore[arg-type]


def predictions(module: Module) -> np.ndarray:
    """Log-probabilities f64[tokens, vocab] on the test text."""
    logits = run(module, [TEST, np.broadcast_to(np.arange(16), TEST.shape)])[0].reshape(-1, 24).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def divergence(module: Module, changed: Module) -> float:
    """Nats per token."""
    p, q = predictions(module), predictions(changed)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


# --- the choice ---------------------------------------------------------------------------------------------------------


def test_every_step_of_a_ladder_gains_less_per_bit_than_the_one_before() -> None:
    given = [Choice("a", 3, 10.0), Choice("b", 4, 9.0), Choice("c", 5, 2.0), Choice("d", 6, 2.5), Choice("e", 8, 1.0)]
    assert [c.what for c in ladder(given)] == ["a", "c", "e"]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_within_one_upgrade_of_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices = {name: [Choice(i, int(bits), float(loss)) for i, (bits, loss) in
                      enumerate(zip(rng.integers(1, 9, 3), rng.exponential(size=3), strict=True))] for name in "abcdef"}
    budget = 24
    best = min((sum(c.loss for c in tried) for tried in itertools.product(*choices.values())
                if sum(c.bits for c in tried) <= budget), default=None)
    chosen = allot(choices, budget)
    assert (chosen is None) == (best is None)
    if chosen is None or best is None:
        return
    assert sum(c.bits for c in chosen.values()) <= budget
    drops = [a.loss - b.loss for given in choices.values() for a, b in itertools.pairwise(ladder(given))]
    assert best <= sum(c.loss for c in chosen.values()) <= best + max(drops, default=0.0) + 1e-12


def test_what_cannot_be_afforded() -> None:
    assert allot({"a": [Choice("small", 4, 1.0)], "b": [Choice("small", 4, 1.0)]}, 7) is None


# --- what rounding costs ------------------------------------------------------------------------------------------------


def test_the_expected_divergence_is_about_the_one_there_is() -> None:
    module = decoder()
    names = ("l0.attn.q", "l0.mlp.up", "l1.mlp.down")
    known = sensitivities(module, [module.consts[n] for n in names], Context(calibration=CALIBRATION))
    scheme = Scheme(format_named("int8"), 32)
    for name in names:
        expected = known[module.consts[name]].loss(module.consts[name].weight.materialize(), scheme)
        changed = copy_module(module)
        run_pipeline(changed, parse_pipeline(f"quantize{{format=int8 group=32 clip=mse only={name}}}"))
        assert 0.3 < expected / divergence(module, changed) < 3, name


def test_what_nothing_reads_costs_nothing() -> None:
    module = decoder()
    dead = module.consts["l1.mlp.down"]
    module.set_weight(module.consts["l1.mlp.up"], ArrayWeight(np.zeros(module.consts["l1.mlp.up"].type.shape, np.float32)))
    known = sensitivities(module, [dead], Context(calibration=CALIBRATION))
    assert known[dead].loss(dead.weight.materialize(), Scheme(format_named("int2"), 32)) == 0


# --- the pass -----------------------------------------------------------------------------------------------------------


def quantised(module: Module, options: str) -> tuple[Module, dict[str, object]]:
    after = copy_module(module)
    [receipt] = run_pipeline(after, parse_pipeline(f"quantize{{{options}}}"), Context(calibration=CALIBRATION))
    return after, receipt.details


def loud() -> Module:
    """A decoder whose second layer hardly counts."""
    module = decoder()
    for name in ("l1.attn.o", "l1.mlp.down"):
        const = module.consts[name]
        module.set_weight(const, ArrayWeight(const.weight.materialize() * np.float32(0.02)))
    return module


def test_bits_go_where_they_count() -> None:
    module = loud()
    after, details = quantised(module, "budget=5 group=32 lm-head=none")
    assert 4.5 < details["bits_per_weight"] <= 5  # type: ignore[operator]
    width = {label(op.result): format_named(op.format).bits for op in after.ops if isinstance(op, Dequantize)}
    first, second = (sum(bits for name, bits in width.items() if name.startswith(layer)) for layer in ("l0", "l1"))
    assert first > second
    uniform, told = quantised(module, "format=int4 group=32 lm-head=none clip=mse symmetric")
    assert details["bits_per_weight"] <= told["bits_per_weight"]  # type: ignore[operator]
    assert divergence(module, after) < divergence(module, uniform)


def test_a_budget_for_gptq() -> None:
    module = loud()
    mixed, uniform = (quantised(module, f"{o} group=32 lm-head=none method=gptq")[0] for o in ("budget=5.125", "format=int4"))
    assert divergence(module, mixed) < divergence(module, uniform)


def test_a_mix_of_one_format_is_that_format() -> None:
    module = decoder()
    same = [quantised(module, o)[0] for o in ("budget=5.4 mix=int4 group=32 lm-head=none", "format=int4 group=32 lm-head=none")]
    for a, b in zip(*(m.consts.values() for m in same), strict=True):
        np.testing.assert_array_equal(a.weight.materialize(), b.weight.materialize())


def test_embeddings_and_an_output_projection_with_a_format_of_its_own_keep_it() -> None:
    for changes, options, wanted in (({"tied": True}, "", ("int4", 16)), ({}, "lm-head=int8", ("int8", 16))):
        after, _ = quantised(decoder(**changes), f"budget=9 group=16 mix=int3 {options}")
        [head] = [op for op in after.ops if isinstance(op, Dequantize) and op.result.type.dims[0] == 24 and
                  label(op.result) in ("embed", "head", "lm_head")]
        assert (head.format, head.group) == wanted


def test_refused() -> None:
    with pytest.raises(PassError, match=r"a budget of 3 bits per weight is too small.*"):
        quantised(decoder(), "budget=3 group=128")
    with pytest.raises(PassError, match="needs calibration text"):
        run_pipeline(decoder(), parse_pipeline("quantize{budget=5}"))
    with pytest.raises(PassError, match="unknown format int5"):
        parse_pipeline("quantize{budget=5 mix=int5+int8}")
