# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"
"""Choosing the next token on the device: one program per row of logits."""

from __future__ import annotations

import triton
import triton.language as tl

from ingot.backends.triton import device


@triton.jit
def greedy(logits_ptr, out_ptr, V, BLOCK: tl.constexpr):
    """The first of the greatest logits f32[B, V] of every row, i64[B]."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([1, BLOCK], float("-inf"), tl.float32)
    place = tl.full([1, BLOCK], 2147483647, tl.int32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        x = tl.load(logits_ptr + row * V + at, mask=at < V, other=float("-inf")).to(tl.float32)
        better = (device.beats(x, best) | (place == 2147483647)) & (at < V)
        best = tl.where(better, x, best)
        place = tl.where(better, at, place)
    found = device.first_top(best, place)
    tl.store(out_ptr + row + tl.zeros_like(found), found.to(tl.int64))


@triton.jit
def _above(logits_ptr, row, V, least, top, scale, BLOCK: tl.constexpr):
    """Of the tokens with logits of `least` or more: how many, and their mass (relative to the likeliest)."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * V + at, mask=at < V, other=float("-inf")).to(tl.float32)
        kept = (x >= least) & (at < V)
        count += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp((x - top) * scale), 0.0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def _number(code):
    """The float whose place in the order of floats is `code`: halving codes halves the floats between two numbers."""
    return tl.where(code >= 0, code, code ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def sample(logits_ptr, uniform_ptr, out_ptr, V, scale, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """A token of every row: logits f32[B, V] times `scale` (1 / temperature), of the top_k greatest (0: all; ties stay), of
    these the fewest likeliest whose mass reaches top_p, none less likely than min_p times the likeliest; drawn by the number
    uniform f32[B] in [0, 1).

    Thresholds are found by halving over all floats: 32 rounds reach the exact one, without sorting.
    """
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, tl.load(logits_ptr + row * V + at, mask=at < V, other=float("-inf")).to(tl.float32))
    top = tl.max(best)
    least = float("-inf")
    if top_k > 0:
        low, high = tl.full((), -2139095041, tl.int64), tl.full((), 2139095041, tl.int64)
        # The greatest float that top_k logits or more reach: it is between low (reached) and high (not reached).
        for _ in range(33):
            middle = (low + high) >> 1
            count, _mass = _above(logits_ptr, row, V, _number(middle.to(tl.int32)), top, scale, BLOCK)
            enough = count >= top_k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        least = tl.maximum(_number(low.to(tl.int32)), float("-inf"))
    if min_p > 0:
        least = tl.maximum(least, top + tl.log(min_p) / scale)
    _count, total = _above(logits_ptr, row, V, least, top, scale, BLOCK)
    if top_p < 1:
        low, high = tl.full((), -2139095041, tl.int64), tl.full((), 2139095041, tl.int64)
        for _ in range(33):
            middle = (low + high) >> 1
            at_least = tl.maximum(_number(middle.to(tl.int32)), least)
            _count, mass = _above(logits_ptr, row, V, at_least, top, scale, BLOCK)
            enough = mass >= top_p * total
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        least = tl.maximum(least, _number(low.to(tl.int32)))
        _count, total = _above(logits_ptr, row, V, least, top, scale, BLOCK)
    # The first token at which the running mass passes the drawn part of it; the last one kept, should rounding miss it.
    wanted = tl.load(uniform_ptr + row) * total
    passed = 0.0
    chosen = 2147483647
    last = 0
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * V + at, mask=at < V, other=float("-inf")).to(tl.float32)
        kept = (x >= least) & (at < V)
        mass = tl.where(kept, tl.exp((x - top) * scale), 0.0)
        running = passed + tl.cumsum(mass, 0)
        chosen = tl.minimum(chosen, tl.min(tl.where(kept & (running > wanted), at, 2147483647)))
        last = tl.maximum(last, tl.max(tl.where(kept, at, 0)))
        passed += tl.sum(mass)
    tl.store(out_ptr + row, tl.where(chosen == 2147483647, last, chosen).to(tl.int64))
