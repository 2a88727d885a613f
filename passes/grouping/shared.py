"""Features that several heads share, and how each head reads its own from them.

Heads k_g = W_g x are replaced by one s = R x with k_g ~ T_g s for the input moments C, by a singular value decomposition of all
heads stacked, each weighted by how strongly it is read. For the values of attention any T may be taken up by the weights that
read them (joint low-rank factors as in Yu et al. 2024, arXiv 2406.07056; Jin et al. 2024, arXiv 2412.20677, turn heads by
orthogonal maps before they prune some); for keys under rotary embedding those that commute with the rotations may: a complex
number for every frequency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FLAT = 1e-10
"""Singular values below this part of the greatest are rounding."""


@dataclass(frozen=True)
class Shared:
    """rows: R, [n, d, k], of unit second moment. maps: T, [n, heads, d, d]. lost: what the heads had that s has not, f64[n], of
    whole: f64[n], both as weighted. The leading axis counts blocks of features that do not mix; arrays are real or complex."""

    rows: np.ndarray
    maps: np.ndarray
    lost: np.ndarray
    whole: np.ndarray


def share(weights: np.ndarray, strengths: np.ndarray, moments: np.ndarray) -> Shared:
    """The features that heads share best.

    weights: W, [n, heads, d, k]. strengths: how strongly the features are read, the moments [n, heads, d, d] of what they are
    multiplied with. moments: C, f64[k, k].
    """
    n, heads, d, k = weights.shape
    values, vectors = np.linalg.eigh(strengths)
    roots = np.sqrt(np.maximum(values, 0))[..., None] * vectors.conj().swapaxes(-1, -2)
    stacked = (roots @ weights).reshape(n, heads * d, k)
    energies, ways = np.linalg.eigh(stacked @ moments @ stacked.conj().swapaxes(-1, -2))
    energies = np.maximum(energies, 0)
    kept, u = energies[:, ::-1][:, :d], ways[:, :, ::-1][:, :, :d]
    scale = np.where(kept > _FLAT * kept[:, :1], 1 / np.sqrt(np.maximum(kept, 1e-300)), 0)
    rows = scale[..., None] * (u.conj().swapaxes(-1, -2) @ stacked)
    maps = weights @ moments @ rows.conj().swapaxes(-1, -2)[:, None]
    return Shared(rows, maps, energies[:, :-d].sum(-1) if heads > 1 else np.zeros(n), energies.sum(-1))


def pair_costs(weights: np.ndarray, strengths: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """What every two heads lose by sharing, as part of what all have, f64[heads, heads]."""
    heads = weights.shape[1]
    costs = np.zeros((heads, heads))
    whole = float(np.einsum("ngij,ngjk,kl,ngil->", strengths, weights, moments, weights.conj(), optimize=True).real)
    for a in range(heads):
        for b in range(a):
            costs[a, b] = costs[b, a] = share(weights[:, [a, b]], strengths[:, [a, b]], moments).lost.sum() / max(whole, 1e-300)
    return costs


def signs(weights: np.ndarray, strengths: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The signs that make heads most alike, block by block: f64[n, heads], of the leading vector of their products
    tr(S_g^1/2 W_g C W_h^T S_h^1/2). weights, strengths, moments: as for `share`."""
    products = np.einsum("ngik,kl,nhil->ngh", weights, moments, weights.conj(), optimize=True).real
    strong = np.sqrt(np.einsum("ngii->ng", strengths).real)
    leading = np.linalg.eigh(products * strong[:, :, None] * strong[:, None])[1][..., -1]
    leading = np.where(leading.sum(-1, keepdims=True) < 0, -leading, leading)
    return np.where(leading < 0, -1.0, 1.0)
