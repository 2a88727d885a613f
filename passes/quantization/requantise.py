"""Other numbers behind a `dequantize`, coded in the same format."""

from __future__ import annotations

from functools import partial

import numpy as np

from ingot.errors import IRError
from ingot.ir.formats import Coded, format_named
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const
from ingot.ir.weights import Weight
from ingot.passes.quantization import rtn
from ingot.passes.quantization.scheme import Scheme
from ingot.passes.rotation.untie import label


def requantise(module: Module, op: Dequantize, weight: Weight, *, made_by: str) -> dict[str, float] | None:
    """Let `op` decode a weight [n, k], rounded to nearest in the format, groups and kind of zero points it has.

    Returns the error of that: of the elements at most ("max"), as a part of the greatest element, and on average ("mean"), as
    a part of the average; None where there are no numbers. Raises PassError for a weight that cannot be coded.
    """
    shared = op.scale.type.dims[0] == 1 and op.packed.type.dims[0] != 1
    scheme = Scheme(format_named(op.format), op.group, symmetric=op.zero is None, per_tensor=shared)
    code = partial(rtn.rounded, fmt=scheme.format, group=scheme.width(weight.type.shape[1]), symmetric=scheme.symmetric,
                   per_tensor=scheme.per_tensor)
    const = Const(label(op.result), weight)
    weights = scheme.weights(const, code, made_by=made_by)
    consts = {part: v for part, v in op.operand_fields if isinstance(v, Const)}
    alike = {part: c.type for part, c in consts.items()} == {part: w.type for part, w in weights.items()}
    if alike and all(len(c.users) == 1 for c in consts.values()):
        for part, new in weights.items():
            module.set_weight(consts[part], new)
    else:
        assert op.func is not None
        scheme.place(op.func, const, op.result.users, weights)
    try:
        w = weight.materialize()
    except IRError:  # read from a dump, which has no numbers
        return None
    coded: Coded = code(w)
    error, size = np.abs(coded.decoded() - w), np.abs(w)
    return {"max": float(error.max() / size.max()), "mean": float(error.mean() / size.mean())}
