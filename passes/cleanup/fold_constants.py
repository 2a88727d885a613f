"""fold-constants: what depends on weights alone is computed when the artifact is written, not when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.ir.dims import Expr
from ingot.ir.interpret import widen
from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.creation import Creation, Scalar
from ingot.ir.ops.layout import Concat, Expand, Flip, Reshape, Slice, Split, Take, Transpose
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, DerivedWeight, Weight, call, derived
from ingot.passes.base import Context, Pass

EAGER = 1 << 20
"""Bytes up to which a result is computed at once, when its inputs are in memory and nothing is rounded."""

_MOVES = (Reshape, Transpose, Slice, Concat, Split, Flip, Take)
_KEPT = (Creation, Expand, Dequantize)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replaces ops on weights alone by derived weights.

    Large weights are not read: the result is a handle that computes on demand. Expansions stay, since their results
    would only take room, and so do dequantised weights, which backends compute with as they are.
    """

    name = "fold-constants"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        return sum(_fold(func, self.name) for func in module.funcs.values())


def folded(b: Builder, op: Op, *, name: str, made_by: str) -> Value:
    """The result of a new op: a weight called `name` when the op depends on weights alone, else the op built with `b`.

    made_by: the pass, as the origin of the weight says.
    """
    if not foldable(op):
        return b(op)
    return b.const(name, constant(op, 0, key=name, made_by=made_by))


def from_weights(value: Value) -> bool:
    """Whether a value is a weight, or computed from weights and attributes alone."""
    if isinstance(value, Const):
        return True
    if value.op is None or any(_symbolic(a) for a in value.op.attrs.values()):
        return False
    return all(map(from_weights, value.op.operands))


def foldable(op: Op) -> bool:
    """Whether the results are known without inputs and worth storing instead of the operands."""
    if isinstance(op, _KEPT) or not all(_known(v) for v in op.operands):
        return False
    if any(_symbolic(value) for value in op.attrs.values()) or any(_symbolic(r.type.dims) for r in op.results):
        return False
    read = sum(v.weight.nbytes for v in op.operands if isinstance(v, Const))
    return all(_nbytes(r.type) <= max(EAGER, read) for r in op.results)


def constant(op: Op, index: int, *, key: str, made_by: str) -> Weight:
    """Result `index` of a foldable op as a weight; computed at once when that is cheap and exact."""
    type_ = op.results[index].type
    inputs = tuple(_weight(v, made_by) for v in op.operands)
    lazy = derived(made_by, Computed(op, index), *inputs, type=type_, key=key, exact=True)
    if _nbytes(type_) > EAGER or type_.dtype.bits < 8 or not all(map(_resident, inputs)):
        return lazy
    wide = lazy.wide()
    array = wide.astype(type_.dtype.numpy)
    if not np.array_equal(array.astype(wide.dtype), wide, equal_nan=type_.dtype.is_float):
        return lazy
    return ArrayWeight(array, None if array.size <= 64 else call("computed", **{"pass": made_by, "key": key}))


def _fold(func: Func, made_by: str) -> int:
    sites = 0
    for op in list(func.ops):
        if not foldable(op):
            continue
        for index, result in enumerate(op.results):
            if result.n_uses:
                func.replace(result, _replacement(func, op, index, made_by))
        sites += 1
    if sites:
        func.drop_dead()
    return sites


def _replacement(func: Func, op: Op, index: int, made_by: str) -> Value:
    base = next((v.name for v in op.operands if isinstance(v, Const)), op.results[index].hint or op.name)
    key = f"{base}.{op.name}" + (f".{index}" if len(op.results) > 1 else "")
    weight = constant(op, index, key=key, made_by=made_by)
    if not weight.type.rank and all(_resident(_weight(v, made_by)) for v in op.operands):
        return Builder(func, before=op)(Scalar(weight.wide().item(), weight.type.dtype))
    return func.module.add_const(key, weight)


def _known(value: Value) -> bool:
    if isinstance(value, Const):
        return True
    op = value.op
    return isinstance(op, Creation) and not any(_symbolic(a) for a in op.attrs.values())


def _weight(value: Value, made_by: str) -> Weight:
    if isinstance(value, Const):
        return value.weight
    assert value.op is not None
    return derived(made_by, Computed(value.op, 0), type=value.type, key=value.op.name, exact=True)


def _resident(weight: Weight) -> bool:
    """Whether the numbers are in memory, or made from none."""
    if isinstance(weight, ArrayWeight):
        return weight.nbytes <= EAGER
    return isinstance(weight, DerivedWeight) and weight.exact and all(map(_resident, weight.inputs))


@dataclass(frozen=True, eq=False)
class Computed:
    """Result `index` of an op as a function of its operands' arrays: the `fn` of folded weights."""

    op: Op
    index: int

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        rest = iter(arrays if isinstance(self.op, _MOVES) else map(widen, arrays))
        inputs = self.op.map_operands(lambda _: next(rest))
        with np.errstate(all="ignore"):
            out: Any = self.op.reference(*inputs)
        return np.asarray(out[self.index] if isinstance(out, tuple | list) else out)


def _symbolic(value: Any) -> bool:
    return any(map(_symbolic, value)) if isinstance(value, tuple) else isinstance(value, Expr)


def _nbytes(type: TensorType) -> int:
    count = 1
    for n in type.shape:
        count *= n
    return count * type.dtype.bits // 8
