"""Symbolic sizes of torch (sympy expressions) as dims of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.utils._sympy.functions import CeilDiv, CleanDiv, FloorDiv, IntTrueDiv, Max, Min, Mod, PythonMod

from ingot.errors import UnsupportedOp
from ingot.ir.dims import Dim, evaluate, floordiv, mod, sym, symbols


@dataclass(frozen=True)
class Sizes:
    """names: torch's size symbols -> names of dims. ranges: dim -> (least, greatest) value."""

    names: Mapping[str, str]
    ranges: Mapping[str, tuple[int, int]]

    def dim(self, size: Any) -> Dim:
        """The dim of an int, SymInt or sympy expression.

        Raises UnsupportedOp for what is no integer polynomial with floor divisions and remainders.
        """
        if isinstance(size, torch.SymInt):
            size = size.node.expr
        if isinstance(size, int | sympy.Integer):
            return int(size)
        if isinstance(size, sympy.Symbol):
            if str(size) not in self.names:
                raise UnsupportedOp(f"a size that depends on the data ({size})",
                                    hint="every size must follow from the inputs' sizes")
            return sym(self.names[str(size)])
        if isinstance(size, sympy.Expr):
            found = self._expression(size)
            if found is not None:
                return found
        raise UnsupportedOp(f"the size {size} is not made of sums, products, floor divisions and remainders",
                            hint="give that axis a fixed size, or teach ingot/frontend/dimensions.py the function")

    def _expression(self, size: sympy.Expr) -> Dim | None:
        args: tuple[Any, ...] = size.args
        if isinstance(size, sympy.Pow):
            if not args[1].is_Integer or int(args[1]) < 1:
                return None
            args = (args[0],) * int(args[1])
        elif isinstance(size, sympy.Mul) and any(arg.is_Rational and not arg.is_Integer for arg in args):
            return None
        dims = [self.dim(arg) for arg in args]
        total = dims[0]
        if isinstance(size, FloorDiv | CleanDiv | IntTrueDiv):
            return floordiv(*dims)
        if isinstance(size, CeilDiv):
            return floordiv(dims[0] + dims[1] - 1, dims[1])
        if isinstance(size, Mod | PythonMod):
            return mod(*dims)
        for dim in dims[1:]:
            if isinstance(size, sympy.Add):
                total = total + dim
            elif isinstance(size, sympy.Mul | sympy.Pow):
                total = total * dim
            elif isinstance(size, Max | Min):
                first = self._greater(total, dim)
                if first is None:
                    return None
                total = total if first == isinstance(size, Max) else dim
            else:
                return None
        return total

    def _greater(self, a: Dim, b: Dim) -> bool | None:
        """Whether a >= b for all sizes in range (False: a <= b); None when that depends on the size.

        A polynomial that is linear in every size has its extremes at the corners of the ranges.
        """
        gap = a - b
        free = sorted(set(symbols(gap)))
        if "%" in str(gap) or any(name not in self.ranges for name in free):
            return None
        corners = [evaluate(gap, dict(zip(free, ends))) for ends in product(*(self.ranges[name] for name in free))]
        if all(value >= 0 for value in corners):
            return True
        return False if all(value <= 0 for value in corners) else None
