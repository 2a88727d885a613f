"""An attention with other heads in the place of what it had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.ir.module import Builder, Func
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.layout import Reshape, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Cast
from ingot.ir.types import DType
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, derived
from ingot.passes.grouping.heads import Heads
from ingot.passes.grouping.site import Site, Stream
from ingot.passes.stored import stored


def rebuild(func: Func, site: Site, heads: Heads, places: np.ndarray, *, made_by: str) -> Attention:
    """Queries, keys and values made by new weights, with as many key heads as `heads` has; returns the new attention.

    places: which of the old query heads stands where, i64[h]. What one linear made is made by one linear still, queries first,
    then keys, then values. Weights keep their names; what reads the result keeps its numbers where `heads` has none for it.
    """
    op = site.attention
    b = Builder(func, before=op)
    streams = [(site.q, heads.q), (site.k, heads.k), (site.v, heads.v)]
    made: dict[Stream, Value] = {}
    for linear in site.linears:
        mine = [(stream, w) for stream, w in streams if stream.linear is linear]
        made.update(zip([stream for stream, _ in mine], _linear(b, linear, [w for _, w in mine], made_by)))
    q, k, v = (_heads(b, stream, made[stream], len(w), old.type.dtype) for (stream, w), old in zip(streams, (op.q, op.k, op.v)))
    sinks = op.sinks
    if isinstance(sinks, Const) and not np.array_equal(places, np.arange(len(places))):
        weight = derived(made_by, lambda s: s[places], sinks.weight, type=sinks.type, key=sinks.name, exact=True)
        func.module.set_weight(sinks, weight)
    new = op.clone(q=q, k=k, v=v)
    func.replace(op.result, b(new))
    assert isinstance(new, Attention)
    if site.out is not None and heads.out is not None:
        w = site.out.w
        assert isinstance(w, Const)
        array = np.empty(w.type.shape)
        array[:, site.columns] = heads.out
        func.module.set_weight(w, _as(w, array, made_by))
    func.drop_dead()
    return new


def _linear(b: Builder, linear: Linear, parts: Sequence[np.ndarray], made_by: str) -> Sequence[Value]:
    """The results of a linear with the rows of several streams, one after the other."""
    const, bias = linear.w, linear.bias
    assert isinstance(const, Const)
    rows = np.concatenate([w.reshape(-1, w.shape[-1]) for w in parts])
    width = const.type.shape[1]
    b.module.set_weight(const, _as(const, rows[:, :width], made_by), resize=True)
    if isinstance(bias, Const):
        b.module.set_weight(bias, _as(bias, rows[:, width], made_by), resize=True)
    y = b(Linear(linear.x, const, bias), linear.result.hint)
    if len(parts) == 1:
        return [y]
    return b.add(Split(y, tuple(w.shape[0] * w.shape[1] for w in parts))).results


def _as(const: Const, array: np.ndarray, made_by: str) -> ArrayWeight:
    return stored(const.name, array.astype(const.type.dtype.numpy), made_by)


def _heads(b: Builder, stream: Stream, made: Value, count: int, dtype: DType) -> Value:
    """[b, s, count * d] as [b, count, s, d], with what is done to every head."""
    lead, size = made.type.dims[:-1], stream.rows.shape[1]
    at = b(Transpose(b(Reshape(made, (*lead, count, size))), (0, 2, 1, 3)))
    for step in stream.steps:
        at = b(step.clone(x=at))
    return at if at.type.dtype == dtype else b(Cast(at, dtype))


