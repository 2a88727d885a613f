"""Symbolic sizes of torch (sympy expressions) as dims of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import CeilDiv, CleanDiv, FloorDiv, IntTrueDiv, Mod, PythonMod

from ingot.errors import UnsupportedOp
from ingot.ir.dims import Dim, floordiv, mod, sym


def dim_of(size: Any, names: Mapping[str, str]) -> Dim:
    """The dim of an int, SymInt or sympy expression; `names` gives torch's symbols the names of the module's dims.

    Raises UnsupportedOp for an expression that is no integer polynomial with floor divisions and remainders.
    """
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    if isinstance(size, int):
        return int(size)
    if isinstance(size, sympy.Integer):
        return int(size)
    if isinstance(size, sympy.Symbol):
        return sym(names.get(str(size), str(size)))
    if isinstance(size, sympy.Expr):
        args = size.args
        if isinstance(size, sympy.Add):
            total: Dim = 0
            for arg in args:
                total = total + dim_of(arg, names)
            return total
        if isinstance(size, sympy.Mul) and all(not arg.is_Rational or arg.is_Integer for arg in args):
            total = 1
            for arg in args:
                total = total * dim_of(arg, names)
            return total
        if isinstance(size, sympy.Pow) and args[1].is_Integer and int(args[1]) > 0:
            base, total = dim_of(args[0], names), 1
            for _ in range(int(args[1])):
                total = total * base
            return total
        if isinstance(size, FloorDiv | CleanDiv | IntTrueDiv):
            return floordiv(dim_of(args[0], names), dim_of(args[1], names))
        if isinstance(size, CeilDiv):
            den = dim_of(args[1], names)
            return floordiv(dim_of(args[0], names) + den - 1, den)
        if isinstance(size, Mod | PythonMod):
            return mod(dim_of(args[0], names), dim_of(args[1], names))
    raise UnsupportedOp(f"the size {size} is not made of sums, products, floor divisions and remainders",
                        hint="give that axis a fixed size, or teach frontend/dimensions.py the function")
