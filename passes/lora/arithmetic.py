"""The arithmetic of low-rank adapters on arrays: in float32 and in PEFT's order, so that what it merges is equal to the bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

MADE_BY = "merge-lora"
"""The pass, in origins of what it makes."""


class Arithmetic(ABC):
    """What an adapter does to the numbers of one weight."""

    @abstractmethod
    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        """The new weight, from the one so far and arrays of the adapter."""


@dataclass(frozen=True)
class Merge(Arithmetic):
    """The weight of a module with a low-rank change added (LoRA, arXiv 2106.09685, section 4.1).

    scale: of the product. flipped: the weight lies as [in, out].
    """

    scale: float
    flipped: bool

    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        """w [out, in] (or flipped), a [rank, in], b [out, rank] -> w + scale * b @ a, in the element type of w."""
        a, b = given
        return _sum(w, change(a, b, self.scale, self.flipped)).astype(w.dtype, copy=False)


@dataclass(frozen=True)
class Decompose(Arithmetic):
    """The same with the rows of the sum scaled to learned norms (DoRA, arXiv 2402.09353, equation 5)."""

    scale: float
    flipped: bool

    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        """w, a, b as in Merge; magnitude [out]; base: the weight whose direction was trained: w, unless others came before."""
        import torch

        a, b, magnitude, base = given
        delta = change(a, b, self.scale, self.flipped)
        total = torch.from_numpy(_sum(base, delta))
        # torch's norm, over the same axis of the same memory: other sums differ in the last bit.
        norm = torch.linalg.norm(total.T if self.flipped else total, dim=1).numpy()
        factor = magnitude.astype(np.float32) / norm
        merged: np.ndarray = (factor if self.flipped else factor[:, None]) * _sum(w, delta)
        return merged.astype(w.dtype, copy=False)


@dataclass(frozen=True)
class PutRows(Arithmetic):
    """Some rows exchanged."""

    at: tuple[int, ...]

    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        """given: rows [n, ...] for the places `at`."""
        (rows,) = given
        out = w.copy()
        out[list(self.at)] = rows.astype(w.dtype)
        return out


@dataclass(frozen=True)
class AddVector(Arithmetic):
    """A vector added, times `scale`."""

    scale: float

    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        (more,) = given
        return _sum(w, more.astype(np.float32) * np.float32(self.scale)).astype(w.dtype, copy=False)


@dataclass(frozen=True)
class Replace(Arithmetic):
    """Other numbers, in the element type of the weight."""

    def __call__(self, w: np.ndarray, *given: np.ndarray) -> np.ndarray:
        (new,) = given
        return new.astype(w.dtype)


def change(a: np.ndarray, b: np.ndarray, scale: float, flipped: bool) -> np.ndarray:
    """scale * b @ a, f32 [out, in]; [in, out] when flipped."""
    import torch

    product = (torch.from_numpy(b.astype(np.float32)) @ torch.from_numpy(a.astype(np.float32))).numpy()
    scaled: np.ndarray = (product.T if flipped else product) * np.float32(scale)
    return scaled


def _sum(w: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """In float32, or float64 where the weight is."""
    total: np.ndarray = w.astype(np.promote_types(w.dtype, np.float32) if w.dtype.kind == "f" else np.float32, copy=False) + delta
    return total
