"""Turning the values of every attention head: the rows that make them and the columns that read the result."""

from __future__ import annotations

import numpy as np

from ingot.ir.dims import evaluate
from ingot.ir.module import Func
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.layout import Reshape, Slice, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Cast
from ingot.ir.pattern import NoMatch
from ingot.ir.value import Const, Value
from ingot.ir.weights import derived
from ingot.passes.quantization.channels import NONE, Channels
from ingot.passes.rotation.hadamard import Rotation

PASS = "rotate"


def rotate_heads(func: Func, op: Attention, seed: int) -> None:
    """The values v of every head become v R, and the linears behind the attention take R back (QuaRot, arXiv 2404.00456,
    section 4, stage 1c, without the part that needs work at run time).

    Raises NoMatch, before anything has changed, where values or results go elsewhere.
    """
    channels = Channels(func, mixing=True)
    source = _source(op.v)
    made = channels.reach(source.result)
    rows = made.at[op.v][0, :, 0] if op.v in made.at else np.full((1, 1), NONE)
    if (rows == NONE).any() or not made.blocked.isdisjoint(rows.reshape(-1).tolist()) or len(np.unique(rows)) < rows.size:
        raise NoMatch("the values are also used elsewhere", op.v)
    if any(isinstance(v.op, Attention) and v.op is not op for v in made.at):
        raise NoMatch("two attentions read the same values", op.v)
    heads, size = op.heads[0], rows.shape[1]
    dims = tuple(evaluate(d, channels.env) for d in op.result.type.dims)
    places = np.broadcast_to(np.arange(heads * size).reshape(1, heads, 1, size), dims)
    read = channels.reach(op.result, places)
    for reader in read.readers:
        if not isinstance(reader.w, Const) or reader.w.users != (reader,) or not reader.w.type.dtype.is_float:
            raise NoMatch("the weight behind the attention is not a float weight of its own", reader.w)
    if read.blocked or not read.readers:
        raise NoMatch("the result is read by more than linears", op.result)
    for const in (source.w, source.bias):
        if const is not None and (not isinstance(const, Const) or const.users != (source,) or not const.type.dtype.is_float):
            raise NoMatch("the weight that makes the values is not a float weight of its own", const)
    rotation = Rotation(size, seed)
    _turn(source.w, rows, rotation, axis=0)
    if source.bias is not None:
        _turn(source.bias, rows, rotation, axis=0)
    for reader, at in read.readers.items():
        columns = np.argsort(at, kind="stable")[np.count_nonzero(at == NONE):].reshape(heads, size)
        _turn(reader.w, columns, rotation, axis=1)


def _source(value: Value) -> Linear:
    start = value
    while not isinstance(value.op, Linear):
        if not isinstance(value.op, Reshape | Transpose | Split | Slice | Cast):
            raise NoMatch("the values do not come from a linear", start)
        value = value.op.x
    return value.op


def _turn(const: Value, places: np.ndarray, rotation: Rotation, *, axis: int) -> None:
    """Turns the rows (axis 0) or columns (axis 1) at `places` [heads, size] of a weight, head by head."""
    assert isinstance(const, Const)

    def turned(w: np.ndarray) -> np.ndarray:
        out = np.moveaxis(np.array(w, np.float64), axis, -1)
        for head in places:
            out[..., head] = rotation(out[..., head])
        return np.moveaxis(out, -1, axis)

    func = const.users[0].func
    assert func is not None
    func.module.set_weight(const, derived(PASS, turned, const.weight, type=const.type, key=const.name, exact=True))
