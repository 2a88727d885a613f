"""Attention and rope against the implementations people use: torch's SDPA and transformers' rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved_rope
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as half_rope

from ingot.errors import IRError
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.rope import Rope
from ingot.ir.types import TensorType, bool_, f32, i64
from ingot.ir.value import Value


def _value(array: np.ndarray) -> Value:
    dtype = {"f": f32, "i": i64, "b": bool_}[array.dtype.kind]
    return Value(TensorType(dtype, array.shape))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, **given: Any) -> np.ndarray:
    """The reference on arrays; operands and attributes by name."""
    operands = {n: given.pop(n) for n in ("pos", "mask", "bias", "sinks") if given.get(n) is not None}
    op = Attention(_value(q), _value(k), _value(v), **{n: _value(a) for n, a in operands.items()}, **given)
    out: np.ndarray = op.reference(q, k, v, *(operands.get(n) for n in ("pos", "mask", "bias", "sinks")))
    return out


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _sdpa(q: np.ndarray, k: np.ndarray, v: np.ndarray, **given: Any) -> np.ndarray:
    tensors = map(torch.from_numpy, (q, k, v))
    return F.scaled_dot_product_attention(*tensors, enable_gqa=True, **given).numpy()


@pytest.mark.parametrize("kv", [1, 2, 6])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_sdpa(kv: int, causal: bool) -> None:
    q, k, v = _random(0, 2, 6, 5, 8), _random(1, 2, kv, 5, 8), _random(2, 2, kv, 5, 4)
    expected = _sdpa(q, k, v, scale=0.2, is_causal=causal)
    np.testing.assert_allclose(attention(q, k, v, scale=0.2, causal=causal), expected, rtol=1e-12)


@given(kv=st.sampled_from([1, 2, 4]), past=st.integers(0, 5), steps=st.integers(1, 4), spare=st.integers(0, 3),
       window=st.none() | st.integers(1, 6), bias=st.booleans(), seed=st.integers(0, 99))
def test_cached_attention_equals_sdpa_under_the_written_out_mask(kv: int, past: int, steps: int, spare: int, window: int | None,
                                                                 bias: bool, seed: int) -> None:
    """Queries at past, past + 1, ... over a cache whose last positions are not written yet."""
    total = past + steps + spare
    q, k, v = _random(seed, 2, 4, steps, 8), _random(seed + 1, 2, kv, total, 8), _random(seed + 2, 2, kv, total, 8)
    pos = np.broadcast_to(past + np.arange(steps), (2, steps))
    back = pos[:, :, None] - np.arange(total)
    seen = (back >= 0) & (back < (window or total + 1))
    plus = _random(seed + 3, 4, 1, total) if bias else np.zeros((4, 1, total))
    added = torch.from_numpy(np.where(seen[:, None], plus, -np.inf))
    got = attention(q, k, v, pos=pos, bias=plus if bias else None, scale=0.35, causal=True, window=window)
    np.testing.assert_allclose(got, _sdpa(q, k, v, attn_mask=added, scale=0.35), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_window_without_causality_looks_both_ways(window: int) -> None:
    q, k, v = _random(0, 1, 2, 6, 8), _random(1, 1, 2, 6, 8), _random(2, 1, 2, 6, 8)
    near = np.abs(np.arange(6)[:, None] - np.arange(6)) < window
    expected = _sdpa(q, k, v, attn_mask=torch.from_numpy(near), scale=0.3)
    np.testing.assert_allclose(attention(q, k, v, scale=0.3, window=window), expected, rtol=1e-12)


def test_a_mask_hides_keys_of_one_row() -> None:
    q, k, v = _random(0, 2, 2, 3, 8), _random(1, 2, 2, 5, 8), _random(2, 2, 2, 5, 8)
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)
    expected = _sdpa(q, k, v, attn_mask=torch.from_numpy(mask)[:, None, None, :], scale=0.3)
    np.testing.assert_allclose(attention(q, k, v, mask=mask, scale=0.3), expected, rtol=1e-12)
    np.testing.assert_allclose(attention(q, k, v, mask=mask.astype(np.int64), scale=0.3), expected, rtol=1e-12)
    one = attention(q, k, v, mask=mask[:1], scale=0.3)
    np.testing.assert_allclose(one[0], expected[0], rtol=1e-12)


def test_a_query_that_sees_no_key_gives_zeros() -> None:
    q, k, v = _random(0, 1, 2, 3, 8), _random(1, 1, 2, 3, 8), _random(2, 1, 2, 3, 8)
    mask = np.array([[False, True, True]])
    got = attention(q, k, v, mask=mask, scale=0.3, causal=True)
    assert not got[:, :, 0].any()
    np.testing.assert_allclose(got[:, :, 1], v[:, :, 1], rtol=1e-12)
    hidden = np.full((1, 1, 1, 3), -np.inf)
    assert not attention(q, k, v, bias=hidden, scale=0.3).any()
    assert not attention(q, k, v, mask=mask & False, sinks=np.zeros(2), scale=0.3).any()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = 1e4 * _random(0, 1, 1, 3, 8), 1e4 * _random(1, 1, 1, 3, 8), _random(2, 1, 1, 3, 8)
    got = attention(q, k, v, scale=1.0)
    np.testing.assert_allclose(got, v[:, :, (q @ k.swapaxes(-1, -2)).argmax(-1)[0, 0]], rtol=1e-12)


def test_sinks_add_to_the_denominator_and_softcap_limits_scores() -> None:
    """As in gpt-oss: a column of logits is joined to the scores, and dropped after the softmax; as in Gemma 2, tanh before."""
    q, k, v = _random(0, 2, 4, 3, 8), _random(1, 2, 2, 5, 8), _random(2, 2, 2, 5, 8)
    sinks = np.array([0.5, -1.0, 3.0, 0.0])
    scores = 5.0 * np.tanh(q @ np.repeat(k, 2, 1).swapaxes(-1, -2) * 0.3 / 5.0)
    joined = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (2, 4, 3, 1))], -1)
    weights = torch.from_numpy(joined).softmax(-1).numpy()[..., :-1]
    got = attention(q, k, v, sinks=sinks, scale=0.3, softcap=5.0)
    np.testing.assert_allclose(got, weights @ np.repeat(v, 2, 1), rtol=1e-12)


@given(st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
def test_decoding_with_a_cache_equals_the_whole(done: int, steps: int, seed: int) -> None:
    """Keys written at their positions and read by `pos` give what attention over the whole sequence gives."""
    total = done + steps
    q, k, v = _random(seed, 2, 4, total, 8), _random(seed + 1, 2, 2, total, 8), _random(seed + 2, 2, 2, total, 8)
    whole = attention(q, k, v, scale=0.3, causal=True)
    caches = [np.full((2, 2, total + 2, 8), 9.0) for _ in range(2)]
    for start, stop in ((0, done), (done, total)):
        pos = np.broadcast_to(np.arange(start, stop), (2, stop - start))
        for i, new in enumerate((k, v)):
            part = new[:, :, start:stop]
            caches[i] = CacheWrite(_value(caches[i]), _value(part), _value(pos)).reference(caches[i], part, pos)
        got = attention(q[:, :, start:stop], *caches, pos=pos, scale=0.3, causal=True)
        np.testing.assert_allclose(got, whole[:, :, start:stop], rtol=1e-10, atol=1e-12)


def test_cache_write_places_rows_apart_and_keeps_the_rest() -> None:
    cache, new = np.zeros((2, 1, 5, 2)), np.arange(8.0).reshape(2, 1, 2, 2) + 1
    op = CacheWrite(_value(cache), _value(new), Value(TensorType(i64, (2, 2))))
    out = op.reference(cache, new, np.array([[0, 1], [3, 4]]))
    assert out[:, 0, :, 0].tolist() == [[1, 3, 0, 0, 0], [0, 0, 0, 5, 7]]
    assert not cache.any()
    for bad in ([[0, 1], [4, 5]], [[-1, 0], [0, 1]]):
        with pytest.raises(IRError, match="a position outside the 5 of the cache"):
            op.reference(cache, new, np.array(bad))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_rope_equals_transformers(interleaved: bool, scale: float) -> None:
    """Llama pairs i with i + d/2 (rotate_half), Cohere pairs neighbours; both take cosines and sines of every feature."""
    x, pos = _random(0, 2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    inv_freq = 1.0 / 100.0 ** (np.arange(4) / 4)
    angle = torch.from_numpy(pos[:, :, None] * inv_freq)
    angles = angle.repeat_interleave(2, -1) if interleaved else torch.cat([angle, angle], -1)
    q = torch.from_numpy(x)
    expected = (interleaved_rope if interleaved else half_rope)(q, q, angles.cos() * scale, angles.sin() * scale)[0]
    op = Rope(_value(x), _value(pos), _value(inv_freq), interleaved=interleaved, scale=scale)
    got = op.reference(x, pos, inv_freq)  # Cohere turns in f32, Llama in what it is given
    np.testing.assert_allclose(got, expected.to(torch.float64).numpy(), rtol=0, atol=1e-6 if interleaved else 1e-12)


def test_rope_keeps_lengths_and_depends_on_distance_only() -> None:
    """What rotary embedding is for (Su et al. 2021): turning keeps norms, and q k^T depends on the difference of positions."""
    q, k = _random(0, 1, 1, 1, 8), _random(1, 1, 1, 1, 8)
    inv_freq = 1.0 / 100.0 ** (np.arange(4) / 4)

    def turn(x: np.ndarray, at: int) -> np.ndarray:
        pos = np.array([[at]])
        out: np.ndarray = Rope(_value(x), _value(pos), _value(inv_freq)).reference(x, pos, inv_freq)
        return out

    np.testing.assert_allclose(np.linalg.norm(turn(q, 13)), np.linalg.norm(q), rtol=1e-12)
    np.testing.assert_allclose((turn(q, 9) * turn(k, 4)).sum(), (turn(q, 105) * turn(k, 100)).sum(), rtol=1e-9)


def test_features_beyond_the_rotary_ones_pass() -> None:
    x, pos, inv_freq = _random(0, 1, 2, 3, 8), np.array([[1, 2, 3]]), np.ones(2)
    got = Rope(_value(x), _value(pos), _value(inv_freq)).reference(x, pos, inv_freq)
    np.testing.assert_array_equal(got[..., 4:], x[..., 4:])
    assert (got[..., :4] != x[..., :4]).all()


@pytest.mark.parametrize(("shapes", "options", "message"), [
    ({"k": (2, 4, 5, 8)}, {}, "do not fit together"),
    ({"q": (2, 5, 3, 8)}, {}, "do not fit together"),
    ({"v": (2, 2, 6, 8)}, {}, "do not fit together"),
    ({}, {"causal": True}, "needs pos"),
    ({"q": (2, 4, 5, 8)}, {"window": 0}, "a window of 0"),
    ({"pos": (3, 3)}, {}, "pos must be integers"),
    ({"mask": (2, 3)}, {}, "mask must be"),
    ({"bias": (2, 3, 1, 5)}, {}, "bias must broadcast"),
    ({"sinks": (2,)}, {}, "sinks must be"),
])
def test_what_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], options: dict[str, Any], message: str) -> None:
    dims = {"q": (2, 4, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)} | shapes
    dtypes = {"pos": i64, "mask": bool_}
    values = {name: Value(TensorType(dtypes.get(name, f32), d)) for name, d in dims.items()}
    with pytest.raises(IRError, match=message):
        Attention(**values, scale=1.0, **options)
