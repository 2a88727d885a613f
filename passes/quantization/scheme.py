"""How a weight is to be quantised, and putting what came of it into the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.errors import IRError, PassError
from ingot.ir.formats import Coded, Format
from ingot.ir.module import Builder, Func
from ingot.ir.op import Op
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType
from ingot.ir.value import Const
from ingot.ir.weights import Weight, derived_together


@dataclass(frozen=True)
class Scheme:
    """A format with its options. group: elements that share a step; 0 is a whole row. per_tensor: all share one."""

    format: Format
    group: int
    symmetric: bool = False
    per_tensor: bool = False

    def width(self, k: int) -> int:
        """Elements of a row of k that share a step."""
        return self.group if self.group and not self.per_tensor else k

    def types(self, shape: tuple[int, int]) -> dict[str, TensorType]:
        """The operands of `dequantize` for a weight [n, k]."""
        return self.format.types(shape, self.width(shape[1]), symmetric=self.symmetric, per_tensor=self.per_tensor)

    def types_of(self, const: Const) -> dict[str, TensorType]:
        """`types` for a weight."""
        return self.types(_matrix(const))

    def stored_bits(self, const: Const) -> int:
        """Bits of all operands together for a weight."""
        return sum(t.dtype.bits * math.prod(t.shape) for t in self.types_of(const).values())

    def weights(self, const: Const, code: Callable[[np.ndarray], Coded], *, made_by: str) -> dict[str, Weight]:
        """The operands, computed by `code` from the weight when they are asked for.

        made_by: the pass, for their origin. Asked for, they raise PassError where the weight cannot be coded.
        """
        types = self.types(_matrix(const))

        def parts(w: np.ndarray) -> tuple[np.ndarray, ...]:
            try:
                made = code(w).parts
            except IRError as error:
                raise PassError(error.message, where=f"@{const.name}", hint=error.hint) from None
            return tuple(made[name] for name in types)

        return derived_together(made_by, parts, const.weight, types=types, key=const.name)

    def place(self, func: Func, const: Const, users: Sequence[Op], weights: dict[str, Weight]) -> None:
        """Lets `users`, ops of a func that take the weight as `w`, take `dequantize` of these operands instead."""
        b = Builder(func, before=users[0])
        parts = {part: b.const(f"{const.name}.{part}", weight) for part, weight in weights.items()}
        fmt, k = self.format, _matrix(const)[1]
        decoded = b(Dequantize(**parts, format=fmt.name, group=self.width(k), dtype=const.type.dtype), hint="w")
        for user in users:
            func.set_operand(user, "w", decoded)


def _matrix(const: Const) -> tuple[int, int]:
    n, k = const.type.shape
    return n, k
