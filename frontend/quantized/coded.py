"""A weight that a checkpoint holds as codes, and its place in the graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.errors import CheckpointError, listed
from ingot.ir.formats import dequantized, format_named, steps
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Take
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, FileWeight, Weight, call


@dataclass(frozen=True, eq=False)
class CodedWeight(FileWeight):
    """A weight [out, in] of a linear, stored as codes; its own numbers are those that the codes stand for.

    path, key: a file that holds a part of it, and the name the float weight would have. layout: how it is stored. parts: the
    operands of `dequantize`, by name. format, group: of `dequantize`. order: which input each column of the codes belongs
    to, i64[in]; None when they are in order.
    """

    layout: str
    parts: Mapping[str, Weight] = field(repr=False)
    format: str
    group: int
    order: np.ndarray | None = field(default=None, repr=False)

    def read(self) -> np.ndarray:
        arrays = {name: part.materialize() for name, part in self.parts.items()}
        step = steps(*(arrays.get(name) for name in ("scale", "tensor_scale", "offset")))  # type: ignore[arg-type]
        decoded = dequantized(format_named(self.format), self.group, arrays["packed"], step, arrays.get("zero"))
        if self.order is not None:
            decoded = decoded[:, np.argsort(self.order)]
        return decoded.astype(self.type.dtype.numpy, copy=False)

    @property
    def origin(self) -> str:
        return call(self.layout, file=self.path.name, key=self.key)

    @property
    def name(self) -> str:
        """What the codes are called: not as the float weight where columns are in another order, which passes look for."""
        return self.key if self.order is None else f"{self.key}.ordered"


def order_of(g_idx: np.ndarray, group: int, *, where: str) -> np.ndarray | None:
    """The inputs sorted by their group, i64[in]; None when they are in order already.

    g_idx: the group of each input (GPTQ's act-order). Raises CheckpointError when groups have other sizes than `group`.
    """
    plain = np.arange(len(g_idx)) // group
    if np.array_equal(g_idx, plain):
        return None
    order = np.argsort(g_idx, kind="stable")
    if not np.array_equal(g_idx[order], plain):
        raise CheckpointError(f"g_idx does not put {group} inputs into each group", where=where,
                              hint="the file is damaged, or group_size in the configuration is of another model")
    return order


def place_codes(module: Module) -> None:
    """Let linears and embeddings decode the weights that are stored as codes, in front of them.

    Where columns are in another order, what the linear reads is put into that order. Weights that something else reads stay
    floats, decoded when they are asked for, and that is told in a warning.
    """
    left: list[str] = []
    placed = False
    for const in [c for c in module.consts.values() if isinstance(c.weight, CodedWeight)]:
        for func in module.funcs.values():
            users = [op for op in func.ops if op in const.users and _decodes(op, const)]
            if users:
                _place(Builder(func, before=users[0]), const, users)
                placed = True
        if const.n_uses:
            left.append(const.name)
    if left:
        warnings.warn(f"{len(left)} quantised weights are no weights of linears to the model and are decoded to floats: "
                      f"{listed(left)}", stacklevel=2)
    if placed:
        module.meta["facts"] = "quantized"
    for func in module.funcs.values():
        func.drop_dead()


def _decodes(op: Op, const: Const) -> bool:
    weight = const.weight
    assert isinstance(weight, CodedWeight)
    if isinstance(op, Linear):
        return op.w is const and op.x is not const
    return isinstance(op, Embedding) and weight.order is None


def _place(b: Builder, const: Const, users: list[Op]) -> None:
    weight = const.weight
    assert isinstance(weight, CodedWeight)
    stem = const.name + weight.name.removeprefix(weight.key)
    parts = {name: b.const(f"{stem}.{name}", part) for name, part in weight.parts.items()}
    decoded = b(Dequantize(**parts, format=weight.format, group=weight.group, dtype=const.type.dtype), hint="w")
    order = None if weight.order is None else b.const(f"{stem}.order", ArrayWeight(weight.order, call(
        weight.layout, file=weight.path.name, key=weight.name, part="order")))
    taken: dict[Value, Value] = {}
    for op in users:
        b.func.set_operand(op, "w", decoded)
        if order is not None and isinstance(op, Linear):
            if op.x not in taken:
                taken[op.x] = Builder(b.func, before=op)(Take(op.x, order, op.x.type.rank - 1))
            b.func.set_operand(op, "x", taken[op.x])
