"""What contracts are tried on: inputs that reach the mistakes, comparisons, and ways to decode."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.stand_in import stand_in
from ingot.ir.text import parse_module, print_module
from ingot.passes.base import Context
from ingot.passes.cache.insert_kv_cache import InsertKvCache
from ingot.passes.cache.take_logits import TakeLogits
from ingot.passes.contracts.contract import Check
from ingot.passes.contracts.decoding import Piece, schedules
from ingot.passes.contracts.difference import find_difference, relative_error
from ingot.passes.contracts.loss import measured, prefill, samples
from ingot.passes.contracts.samples import inputs_for, sizes_for
from ingot.passes.contracts.trial import ExactTrial
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from tests.passes.planted import stack


def module(body: str, params: str = "%x: f32[S, 4]", result: str = "f32[S, 4]") -> Module:
    return parse_module(f"""module @m {{
      dim B in 1..8
      dim S in 1..8
      func @forward({params}) -> ({result}) {{
        {body}
        return %y
      }}
    }}""")


def test_a_difference_says_where_and_what() -> None:
    a = np.array([[1.0, 2.0], [3.0, np.inf]])
    b = a.copy()
    assert find_difference(a, b) is None
    b[1, 0] = 3.5
    found = find_difference(a, b)
    assert found is not None
    assert (found.index, found.before, found.after) == ((1, 0), 3.0, 3.5)
    assert str(found) == "at [1, 0] 3 became 3.5 (off by 0.5, 3e-09 is allowed)"
    b[1, 1] = 4.0
    found = find_difference(a, b)
    assert found is not None
    assert (found.index, found.reason) == ((1, 1), "infinities or NaN at other places")


def test_relative_error() -> None:
    a = np.array([3.0, 4.0, np.nan])
    assert relative_error(a, a) == 0
    assert relative_error(a, np.array([0.0, 0.0, 7.0])) == 1
    assert relative_error(a, np.array([3.0, np.inf, 0.0])) == np.inf
    assert relative_error(np.zeros(2), np.ones(2)) == np.inf


def test_rows_stand_at_different_positions_and_caches_hold_what_is_written() -> None:
    decoder = stack(1)
    starts = [inputs_for(decoder, np.random.default_rng(seed), {"B": 4, "S": 3})["pos"][:, 0] for seed in range(5)]
    assert any(len(set(s)) > 1 for s in starts)
    InsertKvCache().run(decoder, Context())
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sizes = sizes_for(decoder, rng)
        assert sizes["T"] >= sizes["S"]
        assert inputs_for(decoder, rng, sizes)["pos"].max() < sizes["T"]


def test_masks_leave_a_key_in_every_window() -> None:
    windowed = module("%y = attention(%q, %q, %q, mask=%m) {scale = 0.5, window = 2} : f32[B, 2, S, 4]",
                      "%q: f32[B, 2, S, 4], %m: i64[B, S]", "f32[B, 2, S, 4]")
    masks = [inputs_for(windowed, np.random.default_rng(seed), {"B": 3, "S": 6})["m"] for seed in range(9)]
    assert all((m[:, ::2] == 1).all() for m in masks)
    assert any((m == 0).any() for m in masks)


def test_positive_numbers_are_tried_where_normal_ones_give_nothing() -> None:
    before = module("%y = log(%x) : f32[S, 4]")
    after = module("%s = sqrt(%x) : f32[S, 4]\n%l = log(%s) : f32[S, 4]\n%y = add(%l, %l) : f32[S, 4]")
    assert ExactTrial().find(before, after, seed=0) is None
    deep = "%y = sqrt(%t) : f32[S, 4]"
    low = module(f"%c = scalar() {{value = -0.25}} : f32[]\n%t = add(%x, %c) : f32[S, 4]\n{deep}")
    high = module(f"%c = scalar() {{value = -0.26}} : f32[]\n%t = add(%x, %c) : f32[S, 4]\n{deep}")
    assert ExactTrial().find(low, high, seed=0) is not None


def test_every_split_is_tried() -> None:
    ways = list(schedules(2, 5))
    together = [[(p.starts[0], p.count) for p in way] for way in ways if all(len(set(p.starts)) == 1 for p in way)]
    for first in range(1, 6):
        assert [(0, first), *((i, 1) for i in range(first, 5))] in together
    assert [(0, 2), (2, 2), (4, 1)] in together
    assert ways[-1] == [Piece((0, 0), 3, (3, 2)), Piece((3, 2), 1, (1, 1)), Piece((4, 3), 1, (1, 1))]
    for way in ways:
        assert sum(p.valid[0] for p in way) == 5


def test_a_prefill_feeds_whatever_the_decoder_asks_for() -> None:
    decoder = stack(1)
    ids = np.arange(100)[None] % 32
    assert set(prefill(decoder, ids)) == {"ids", "pos"}
    for p in (TakeLogits(), InsertKvCache()):
        p.run(decoder, Context())
    fed = prefill(decoder, ids)
    assert fed["kc0"].shape == (1, 2, 100, 4)
    assert not fed["kc0"].any()
    assert fed["take"].shape == (1, 64)
    assert (fed["take"][0, 0], fed["take"][0, -1]) == (0, 99)
    assert (fed["pos"][0] == np.arange(100)).all()


def test_loss_is_measured_on_calibration_text_where_there_is_some() -> None:
    decoder = stack(1)
    text = [np.full((1, 9), 7)]
    assert (samples(decoder, decoder, Context(calibration=text), seed=0)["ids"] == text[0]).all()
    drawn = samples(decoder, decoder, Context(), seed=0)["ids"]
    assert drawn.shape == (1, 32)
    assert len(set(drawn[0])) > 5


def test_measured() -> None:
    logits = np.log(np.array([[[0.5, 0.25, 0.25]], [[0.1, 0.1, 0.8]]]))
    found = measured([logits], [logits + 3], logits=True)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["top1"] == 1
    other = np.log(np.array([[[0.25, 0.5, 0.25]], [[0.1, 0.1, 0.8]]]))
    found = measured([logits], [other], logits=True)
    assert found["kl"] == pytest.approx(0.25 * np.log(2) / 2)
    assert found["top1"] == 0.5


def test_weights_without_numbers_get_some() -> None:
    text = print_module(stack(1))
    first, second = (parse_module(text) for _ in range(2))
    assert stand_in(first) == stand_in(second) == len(first.consts) - 2  # small ones are in the text
    assert stand_in(first) == 0
    assert print_module(first) == text
    a, b = (m.consts["l0.q"].weight.materialize() for m in (first, second))
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)
    assert 0.1 < a.std() < 0.5
    assert not np.array_equal(a[:8], first.consts["l0.k"].weight.materialize())


def test_a_dump_may_be_checked_without_its_weights() -> None:
    dump = parse_module(print_module(stack(2)))
    plain = copy_module(dump)
    stand_in(dump)
    pipeline = parse_pipeline("clean,fuse,take-logits,insert-kv-cache,clean")
    receipts = run_pipeline(dump, pipeline, check=Check(small=0))
    assert sum("check" in r.details for r in receipts) >= 3
    run_pipeline(plain, pipeline)
    assert print_module(plain) == print_module(dump)
