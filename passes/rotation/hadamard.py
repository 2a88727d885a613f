"""Rotations that spread every channel over all others: randomised Hadamard matrices, applied without building them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix R [n, n] = diag(signs) H / sqrt(n), with random signs and H a Hadamard matrix.

    H = H_m (x) H_2 (x) ... (x) H_2 with the smallest m Paley's constructions give (QuIP#, arXiv 2402.04396, section 3). Where
    they give none, R is a random orthogonal matrix (QR of a normal one). The same for the same seed.
    """

    n: int
    seed: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x R for x [..., n], f64. Time O(n log n) per row where there is a Hadamard matrix."""
        x = np.asarray(x, np.float64)
        core = hadamard_core(self.n)
        if core is None:
            return np.asarray(x @ self._dense)
        m = len(core)
        y = (x * self._signs).reshape(*x.shape[:-1], m, self.n // m)
        y = np.swapaxes(np.swapaxes(y, -1, -2) @ core, -1, -2)
        step = 1
        while step < self.n // m:
            pairs = y.reshape(*x.shape[:-1], -1, 2, step)
            y = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2)
            step *= 2
        return np.asarray(y.reshape(x.shape) / math.sqrt(self.n))

    @cached_property
    def _signs(self) -> np.ndarray:
        return np.asarray(np.random.default_rng([self.seed, self.n]).integers(0, 2, self.n) * 2.0 - 1)

    @cached_property
    def _dense(self) -> np.ndarray:
        q, r = np.linalg.qr(np.random.default_rng([self.seed, self.n]).normal(size=(self.n, self.n)))
        dense: np.ndarray = q * np.sign(np.diag(r))
        return dense


def hadamard_core(n: int) -> np.ndarray | None:
    """A Hadamard matrix of the smallest order m with n = m * 2^a that is 1, 2 or one of Paley's, f64[m, m]; else None."""
    m = n
    while m % 2 == 0:
        m //= 2
    while m <= n:
        found = _paley(m)
        if found is not None:
            return found
        m *= 2
    return None


def _paley(m: int) -> np.ndarray | None:
    """Paley 1933, constructions I (q = m - 1 a prime, 3 mod 4) and II (q = m / 2 - 1 a prime, 1 mod 4)."""
    if m == 1:
        return np.ones((1, 1))
    if m % 4:
        return None
    if _prime(m - 1):
        skew = _bordered(m - 1)
        skew[0] *= -1
        return np.asarray(skew + np.eye(m))
    if _prime(m // 2 - 1) and (m // 2 - 1) % 4 == 1:
        conference = _bordered(m // 2 - 1)
        return np.asarray(np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(m // 2), [[1, -1], [-1, -1]]))
    return None


def _bordered(q: int) -> np.ndarray:
    """The Jacobsthal matrix of a prime q (entry i, j: whether i - j is a square modulo q) with a border of ones."""
    squares = {i * i % q for i in range(1, q)}
    row = np.array([0.0 if i == 0 else 1.0 if i in squares else -1.0 for i in range(q)])
    out = np.ones((q + 1, q + 1))
    out[0, 0] = 0
    out[1:, 1:] = row[(np.arange(q)[:, None] - np.arange(q)) % q]
    return out


def _prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))
