"""Caches in pages: the same logits as from caches in one piece, wherever the pages lie."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ingot.backends.triton.caches import Contiguous, Paged
from ingot.backends.triton.decoder import Decoder
from ingot.backends.triton.module import TritonModule
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.testing import Decoder as Plan
from tests.backends.triton.interpreted.check import changed

PLAN = Plan(layers=1, width=32, head_dim=16, kv_heads=2, group=2, vocab=16, context=32, positions="rope", rotary_dim=16,
            place="pre", mlp="gated", activation="silu", seed=3)
TEXT = [np.random.default_rng(i).integers(0, 16, (1, 24)) for i in range(3)]
LIMIT = 1e-6
"""Of the greatest logit: a block of keys is a page at most, so that sums are taken in another order."""
IDS = torch.from_numpy(np.random.default_rng(9).integers(0, 16, (2, 14)))


def module(plan: Plan, cache: str) -> Module:
    made = plan.module()
    run_pipeline(made, parse_pipeline(f"clean,fuse,insert-kv-cache{cache},clean"), Context(calibration=TEXT))
    return made


def decoded(compiled: TritonModule, pool: Paged | None = None) -> np.ndarray:
    """Logits of two rows of 13 tokens in two runs, and of a further step."""
    decoder = Decoder(compiled, batch=2, capacity=16, caches=pool)
    got, start = [], 0
    for stop in (7, 13, 14):
        decoder.reserve([start] * 2, [stop] * 2)
        pos = torch.arange(start, stop).expand(2, -1)
        got.append(decoder.feed(IDS[:, start:stop], pos, torch.arange(stop - start).expand(2, -1)))
        start = stop
    return torch.cat(got, 1).numpy()


@pytest.mark.parametrize(("changes", "cache"), [
    ({}, ""), ({"sinks": True, "windows": (3,), "softcap": 2.0}, ""), ({}, "{dtype=int8}"),
    ({"windows": (5,)}, "{dtype=int8 scale=token}")])
def test_pages_change_nothing(changes: dict[str, object], cache: str) -> None:
    """Pages of four positions, scattered over a pool full of numbers that nobody should read."""
    made = module(replace(PLAN, **changes), cache)  # type: ignore[arg-type]
    wanted = decoded(TritonModule(made, device="cpu"))
    compiled = TritonModule(made, device="cpu", page=4)
    assert compiled.page == 4
    pool = Paged(compiled, 2, 16)
    pool.tensors = {p: torch.full((40, *t.shape[1:]), 77, dtype=t.dtype) for p, t in pool.tensors.items()}
    pool.table.users += [0] * 39
    pool.table._free = np.random.default_rng(1).permutation(np.arange(1, 40)).tolist()
    assert np.abs(decoded(compiled, pool) - wanted).max() < LIMIT * np.abs(wanted).max()
    assert all(len(t) == 40 for t in pool.tensors.values())


def test_it_would_be_noticed() -> None:
    """Where positions of a page are read in another order."""
    made = module(PLAN, "")
    wanted = decoded(TritonModule(made, device="cpu"))
    with changed("t_down % 4", "(3 - t_down % 4)"):
        assert np.abs(decoded(TritonModule(made, device="cpu", page=4)) - wanted).max() > 100 * LIMIT * np.abs(wanted).max()


def test_torch_reads_no_pages() -> None:
    """A cache that torch reads, which has no table of pages, lies in one piece."""
    text = """
module @read {
  dim B in 1..4
  dim T in 1..64
  func @forward(%ids: i64[B, 1], %c: f32[B, 2, T, 4], %n: f32[B, 2, 1, 4]) -> (f32[B, 2, T, 4] reuse %c, i64[B, 2, T, 4]) {
    %w = cache.write(%c, %n, %ids) : f32[B, 2, T, 4]
    %o = cast(%w) {dtype = i64} : i64[B, 2, T, 4]
    return %w, %o
  }
}
"""
    assert TritonModule(parse_module(text), device="cpu", page=4).page == 4
    with patch("ingot.backends.triton.write.MOST_OPS", 0):
        compiled = TritonModule(parse_module(text), device="cpu", page=4)
    assert compiled.page == 0
    assert compiled.fallbacks


def test_which_caches_a_decoder_has() -> None:
    made = module(PLAN, "")
    assert isinstance(Decoder(TritonModule(made, device="cpu"), batch=1, capacity=8).caches, Contiguous)
    assert isinstance(Decoder(TritonModule(made, device="cpu", page=8), batch=1, capacity=8).caches, Paged)
