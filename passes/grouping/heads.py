"""The heads of an attention as arrays, and as they become when groups of key heads are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.passes.grouping.features import Features
from ingot.passes.grouping.partition import Groups
from ingot.passes.grouping.shared import pair_costs, share, signs


@dataclass(frozen=True)
class Heads:
    """Weights by head: q f64[h, d, k], k f64[g, d, k], v f64[g, e, k] (biases as a last input that is always 1), and out
    f64[o, h, e]; None where what reads the result is to stay as it is."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    out: np.ndarray | None

    @property
    def per_key(self) -> int:
        """Query heads that read one key head."""
        return len(self.q) // len(self.k)


@dataclass(frozen=True)
class Seen:
    """Second moments of what makes queries, keys and values, f64[k, k] each; with a bias, of the input with a 1 behind it."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


def order(groups: Groups, per_key: int) -> np.ndarray:
    """The query heads in the order that puts those of one group together, i64[h]."""
    return np.array([head * per_key + i for group in groups for head in group for i in range(per_key)])


def pooled(heads: Heads, groups: Groups) -> Heads:
    """The keys and values of every group are the mean of those of its heads (Ainslie et al. 2023, arXiv 2305.13245, 2.1)."""
    k, v = (np.stack([w[list(group)].mean(0) for group in groups]) for w in (heads.k, heads.v))
    return _ordered(heads.q, k, v, heads.out, groups, heads.per_key)


def losses(heads: Heads, seen: Seen, features: Features | None) -> np.ndarray:
    """What every two key heads lose by being merged after alignment, keys and values each as part of what all have, f64[g, g]."""
    total = pair_costs(heads.v[None], _value_strengths(heads)[None], seen.v)
    strengths = _query_moments(heads, seen)
    whole = np.einsum("gij,gjk,kl,gil->", strengths, heads.k, seen.k, heads.k, optimize=True)
    for a in range(len(heads.k)):
        for b in range(a):
            lost = _merged_keys(heads.k[[a, b]], strengths[[a, b]], seen.k, features)[2]
            total[a, b] = total[b, a] = total[a, b] + lost / max(float(whole), 1e-300)
    return total


def merged(heads: Heads, seen: Seen, features: Features | None, groups: Groups) -> tuple[Heads, float, float]:
    """Groups of key heads aligned by what attention is invariant to, then merged; queries and out read the merged ones.

    features: see `features_of`. Returns the heads, queries in the new order, and the parts of keys and of values that were lost.
    """
    q, out = heads.q.copy(), None if heads.out is None else heads.out.copy()
    k, v = [], []
    lost, whole = np.zeros(2), np.zeros(2)
    strengths, values = _query_moments(heads, seen), _value_strengths(heads)
    n = heads.per_key
    for group in map(list, groups):
        shared = share(heads.v[None, group], values[None, group], seen.v)
        key, turns, gone, all_ = _merged_keys(heads.k[group], strengths[group], seen.k, features)
        lost += gone, shared.lost[0]
        whole += all_, shared.whole[0]
        k.append(key)
        v.append(shared.rows[0])
        for place, head in enumerate(group):
            mine = slice(head * n, (head + 1) * n)
            q[mine] = turns(q[mine], place)
            if out is not None:
                out[:, mine] = out[:, mine] @ shared.maps[0, place]
    parts = lost / np.maximum(whole, 1e-300)
    return _ordered(q, np.stack(k), np.stack(v), out, groups, n), float(parts[0]), float(parts[1])


Turns = Callable[[np.ndarray, int], np.ndarray]
"""Queries f64[..., d, k] for the merged keys from those for one of its heads."""


def _merged_keys(w: np.ndarray, strengths: np.ndarray, moments: np.ndarray,
                 features: Features | None) -> tuple[np.ndarray, Turns, float, float]:
    """One key head f64[d, k] for several w f64[m, d, k], what it makes of their queries, and what is lost, of how much."""
    whole = float(np.einsum("gij,gjk,kl,gil->", strengths, w, moments, w, optimize=True))
    if features is None or features.normed:
        return _signed_keys(w, strengths, moments, features, whole)
    turning, standing = features.turning(w), features.standing(w)
    strong = strengths.diagonal(axis1=-2, axis2=-1)
    energy = (strong[:, features.real] + strong[:, features.imag]).T[..., None, None] / 2
    pairs = share(turning, energy, moments)
    block = share(standing, strengths[None][:, :, features.still][..., features.still], moments)
    key = features.put(np.empty(w.shape[1:]), pairs.rows, block.rows)

    def turned(q: np.ndarray, place: int) -> np.ndarray:
        turn = pairs.maps[:, place].conj().swapaxes(-1, -2)
        turn = turn.reshape(len(turn), *(1,) * (q.ndim - 2), *turn.shape[-2:])
        return features.put(np.empty_like(q), turn * features.turning(q), block.maps[0, place].T @ features.standing(q))

    lost = float(pairs.lost.sum() + block.lost.sum())
    return key, turned, lost, float(pairs.whole.sum() + block.whole.sum())


def _signed_keys(w: np.ndarray, strengths: np.ndarray, moments: np.ndarray, features: Features | None,
                 whole: float) -> tuple[np.ndarray, Turns, float, float]:
    """Where heads are normalised: the mean of heads of one size, their features as they are but for signs."""
    size = np.sqrt(np.einsum("gik,kl,gil->g", w, moments, w, optimize=True) / w.shape[1])
    flips = np.ones(w.shape[:2])
    if features is not None and features.normed == "rms":
        strong = strengths.diagonal(axis1=-2, axis2=-1)
        energy = (strong[:, features.real] + strong[:, features.imag]).T[..., None, None]
        flips[:, features.real] = flips[:, features.imag] = signs(features.turning(w), energy, moments).T
        alone = np.moveaxis(w[:, features.still], 1, 0)[:, :, None]
        flips[:, features.still] = signs(alone, strong[:, features.still].T[..., None, None], moments).T
    if features is None or not features.normed:
        size = np.ones(len(w))
    alike = w * (flips / np.maximum(size, 1e-30)[:, None])[..., None]
    key = alike.mean(0)
    rest = (alike - key) * size[:, None, None]
    lost = float(np.einsum("gij,gjk,kl,gil->", strengths, rest, moments, rest, optimize=True))
    return key * size.mean(), lambda q, place: q * flips[place][:, None], lost, whole


def _query_moments(heads: Heads, seen: Seen) -> np.ndarray:
    """Of the queries that read each key head, f64[g, d, d]."""
    made = np.einsum("hik,kl,hjl->hij", heads.q, seen.q, heads.q, optimize=True)
    return np.asarray(made.reshape(len(heads.k), heads.per_key, *made.shape[1:]).sum(1))


def _value_strengths(heads: Heads) -> np.ndarray:
    """How strongly the features of each value head are read, f64[g, e, e]."""
    if heads.out is None:
        return np.broadcast_to(np.eye(heads.v.shape[1]), (len(heads.v), *(heads.v.shape[1],) * 2))
    read = np.einsum("ohe,ohf->hef", heads.out, heads.out, optimize=True)
    return np.asarray(read.reshape(len(heads.v), heads.per_key, *read.shape[1:]).sum(1))


def _ordered(q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray | None, groups: Groups, per_key: int) -> Heads:
    at = order(groups, per_key)
    return Heads(q[at], k, v, None if out is None else out[:, at])
