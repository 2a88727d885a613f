"""Whether a rounded value is as near to the original as its format promises, judged by what is computed with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.ir.copy import copied
from ingot.ir.formats import format_named, grouped, steps
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.pointwise import Add, Round
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.passes.contracts.difference import Difference
from ingot.passes.contracts.loss import Engine, interpreted, outputs
from ingot.passes.contracts.samples import LARGEST, sizes_for
from ingot.passes.contracts.trial import Finding, Inputs, Trial, Weights


@dataclass(frozen=True, kw_only=True)
class RoundingTrial(Trial):
    """The error of each output is explained by rounding: it stays below a limit, in units of the error that comes about
    when every rounded number is half a gap off, with random signs.

    The gap is that between neighbours of the format (`Format.bound`) for dequantised weights, one for `round`. Rounding to
    nearest comes to 0.58 of it; methods that trade one weight's error for another's to less on text like that they were
    calibrated on, and to 1.3 on random inputs; a zero point off by one to 2, a wrong scale or order to more. `alone` is the
    limit for one tensor, `together` for several, whose errors average out. Where a few numbers decide, signs that happen to
    cancel would make the limit too low: what seems too far off is compared with the greatest of several `draws`. Modules that
    round nothing are left alone. In the declared element types, by `engine`. ops: what counts as rounding.
    """

    wider: ClassVar[tuple[int, ...]] = (0, 2)
    rounds: int = 1
    alone: float = 1.5
    together: float = 1.2
    draws: int = 24
    ops: tuple[type[Op], ...] = (Dequantize, Round)
    engine: Engine = interpreted

    def sizes(self, before: Module, after: Module, rng: np.random.Generator, *, least: bool) -> dict[str, int]:
        """Many rows, over which errors that point one way add up to more than random ones."""
        return sizes_for(after, rng, at_least=LARGEST)

    def judge(self, before: Module, after: Module, inputs: Inputs, weights: Weights | None = None) -> Finding | None:
        noisy, added = _off(after, self.ops)
        if not added:
            return None
        seen: dict[Value, np.ndarray] = {}
        watched = {v for rounded in added if rounded.op is not None for v in (rounded, *rounded.op.operands)}

        def observe(value: Value, array: np.ndarray) -> None:
            if value in watched:
                seen[value] = array

        old, new = self.engine(before, inputs), self.engine(after, inputs, observe=observe)
        old, new = outputs(before, old), outputs(after, new)
        floats = [i for i, (a, b) in enumerate(zip(old, new)) if a.shape == b.shape and a.dtype.kind == "f"]
        errors, sizes = {i: _norm(old[i] - new[i]) for i in floats}, {i: _norm(old[i]) for i in floats}
        limit = self.alone if len(added) == 1 else self.together
        wrong, bounds = floats, dict.fromkeys(floats, 0.0)
        for draw in range(self.draws):
            noise = {name: _noise(rounded, seen, draw) for rounded, name in added.items()}
            off = outputs(noisy, self.engine(noisy, {**inputs, **noise}))
            bounds = {i: max(bound, _norm(new[i] - off[i])) for i, bound in bounds.items()}
            wrong = [i for i in floats if not errors[i] <= limit * bounds[i] + 1e-6 * sizes[i]]
            if not wrong:
                return None
        i = wrong[0]
        at = np.unravel_index(np.abs(old[i] - new[i]).argmax(), old[i].shape)
        size = sizes[i] or 1
        reason = f"off by {errors[i] / size:.2%} of its size, rounding explains {bounds[i] / size:.2%}"
        return Finding(i, Difference(reason, tuple(map(int, at)), float(old[i][at]), float(new[i][at])), inputs)


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def _off(module: Module, ops: tuple[type[Op], ...]) -> tuple[Module, dict[Value, str]]:
    """A copy where a parameter is added to every rounded number, and its name by the rounded value of `module`."""
    twin, mapping = copied(module)
    func = twin.main
    added: dict[Value, str] = {}
    for op in module.main.ops:
        if isinstance(op, ops):
            value = mapping[op.results[0]]
            name = f"off{len(added)}"
            shifted = Add(value, func.add_param(name, value.type))
            assert value.op is not None
            func.insert(shifted, after=value.op)
            func.replace(value, shifted.result)
            added[op.results[0]] = name
    return twin, added


def _noise(rounded: Value, seen: dict[Value, np.ndarray], draw: int) -> np.ndarray:
    """Half a gap for every rounded number, with random signs."""
    numbers = seen[rounded]
    sign = np.random.default_rng(draw).integers(0, 2, size=numbers.shape, dtype=np.int8) * 2 - 1
    op = rounded.op
    if not isinstance(op, Dequantize):
        return (0.5 * sign).astype(numbers.dtype)
    scale, zero, *second = (None if v is None else v.weight.materialize() if isinstance(v, Const) else seen[v]
                            for v in (op.scale, op.zero, op.tensor_scale, op.offset))
    assert scale is not None
    step = steps(scale, *second)[..., None]
    groups = grouped(numbers.astype(np.float32, copy=False), op.group)
    half = format_named(op.format).bound(groups, step, None if zero is None else zero[..., None])
    return (half.reshape(*numbers.shape[:-1], -1)[..., :numbers.shape[-1]] * sign).astype(numbers.dtype)
