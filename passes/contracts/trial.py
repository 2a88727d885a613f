"""What a contract comes down to on two modules: inputs to run both on, and whether what they compute fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.errors import IngotError
from ingot.ir.interpret import run, solve_dims
from ingot.ir.module import Module
from ingot.ir.weights import Weight
from ingot.passes.contracts.difference import EXACT, Difference, find_difference
from ingot.passes.contracts.samples import LARGEST, inputs_for, least_sizes, sizes_for

HEAVY = 10_000_000
"""Bytes of weights from which on every row of inputs counts."""
Inputs = Mapping[str, np.ndarray]
"""Arrays by parameter name, for both modules."""
Weights = dict[Weight, np.ndarray]
"""Arrays of weights, kept from one run to the next."""


@dataclass(frozen=True)
class Finding:
    """Two modules that do not fit: which output (by index), how it differs, the inputs, and the circumstances in words."""

    output: int
    difference: Difference
    inputs: Inputs
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Trial(ABC):
    """Judges a module after a pass against the one before.

    rounds: on how many draws of inputs. carries: whether parts of a module also return the caches they write. wider: how
    many shared values the part of a module that does not fit reaches past when it is tried again.
    """

    rounds: int = 3
    carries: ClassVar[bool] = False
    wider: ClassVar[tuple[int, ...]] = (0, 2, 12)

    def sizes(self, before: Module, after: Module, rng: np.random.Generator, *, least: bool) -> dict[str, int]:
        """The least size of every dim, or one drawn from two upwards (two, where there are large weights)."""
        heavy = sum(c.weight.nbytes for c in after.consts.values()) > HEAVY
        return least_sizes(after) if least else sizes_for(after, rng, at_least=2, at_most=2 if heavy else LARGEST)

    def inputs(self, before: Module, after: Module, rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Inputs of these sizes for the parameters of either module."""
        return inputs_for(after, rng, sizes, like=before) | inputs_for(before, rng, sizes, like=after)

    @abstractmethod
    def judge(self, before: Module, after: Module, inputs: Inputs, weights: Weights | None = None) -> Finding | None:
        """What is wrong on these inputs; None when nothing is. weights: see `ingot.ir.interpret.run`."""

    def find(self, before: Module, after: Module, *, seed: int, weights: Weights | None = None,
             given: Inputs | None = None) -> Finding | None:
        """What is wrong on `rounds` draws of inputs, the first of the least size; None when nothing is.

        given: numbers for some of the inputs, of one size. Where normal numbers give hardly anything finite (a root of a
        variance, a logarithm), positive ones are tried too. Raises IngotError where the module before cannot be run.
        """
        given = given or {}
        fixed = [p for module in (before, after) for p in module.main.params if p.hint in given]
        known = solve_dims([p.type for p in fixed], [given[p.hint or ""].shape for p in fixed])
        empty = False
        for index in range(self.rounds):
            rng = np.random.default_rng([seed, index])
            sizes = self.sizes(before, after, rng, least=index == 0) | known
            inputs = {**self.inputs(before, after, rng, sizes), **given}
            empty = _mostly_nan(before, inputs, weights) if index == 0 else empty
            for tried in (inputs, _positive(inputs)) if empty else (inputs,):
                found = self._judged(before, after, tried, weights)
                if found is not None:
                    return found
        return None

    def _judged(self, before: Module, after: Module, inputs: Inputs, weights: Weights | None) -> Finding | None:
        """As `judge`; what runs before and fails after is wrong. Raises IngotError where both fail."""
        try:
            return self.judge(before, after, inputs, weights)
        except IngotError as error:
            run_on(before, inputs, weights)
            return Finding(0, Difference(f"it cannot be computed any more: {error.message}"), inputs)


@dataclass(frozen=True, kw_only=True)
class ExactTrial(Trial):
    """Equal outputs in float64, within `rtol` of the greatest magnitude."""

    rtol: float = EXACT

    def judge(self, before: Module, after: Module, inputs: Inputs, weights: Weights | None = None) -> Finding | None:
        old, new = run_on(before, inputs, weights), run_on(after, inputs, weights)
        if len(old) != len(new):
            return Finding(0, Difference(f"{len(old)} results became {len(new)}"), inputs)
        for i, (a, b) in enumerate(zip(old, new)):
            found = find_difference(a, b, rtol=self.rtol)
            if found is not None:
                return Finding(i, found, inputs)
        return None


def run_on(module: Module, inputs: Inputs, weights: Weights | None = None) -> list[np.ndarray]:
    """The returns of a module in float64; inputs it has no parameter for are left aside."""
    return run(module, {p.hint or "": inputs[p.hint or ""] for p in module.main.params}, weights=weights)


def _mostly_nan(module: Module, inputs: Inputs, weights: Weights | None) -> bool:
    out = [a for a in run_on(module, inputs, weights) if a.dtype.kind == "f" and a.size]
    return any(np.isfinite(a).mean() < 0.5 for a in out)


def _positive(inputs: Inputs) -> Inputs:
    return {name: np.abs(a) + a.dtype.type(0.5) if a.dtype.kind == "f" else a for name, a in inputs.items()}
