"""Where heads may be merged: an attention, the linears that make its queries, keys and values, and the one that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.errors import PassError
from ingot.ir.dims import evaluate
from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.layout import Reshape, Slice, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Cast
from ingot.ir.ops.rope import Rope
from ingot.ir.value import Const, Value
from ingot.passes.contracts.samples import least_sizes
from ingot.passes.quantization.channels import NONE, Channels

Step = Rope | RmsNorm | LayerNorm


@dataclass(frozen=True, eq=False)
class Stream:
    """Queries, keys or values on the way from a linear to attention.

    rows: the row of the linear's weight that makes each feature of each head, i64[heads, d]. steps: what is done to the features
    of every head in between, first to last.
    """

    linear: Linear
    rows: np.ndarray
    steps: tuple[Step, ...]

    @property
    def const(self) -> Const:
        assert isinstance(self.linear.w, Const)
        return self.linear.w

    def weight(self) -> np.ndarray:
        """The rows of each head, f64[heads, d, k]; with the bias, if there is one, behind them: f64[heads, d, k + 1]."""
        w: np.ndarray = self.const.weight.materialize().astype(np.float64)[self.rows]
        if not isinstance(self.linear.bias, Const):
            return w
        return np.concatenate([w, self.linear.bias.weight.materialize().astype(np.float64)[self.rows][..., None]], -1)


@dataclass(frozen=True, eq=False)
class Site:
    """An attention whose heads may be merged.

    out: the linear that reads its result and nothing else, None where there is no such; why_not says why. columns: the input
    of `out` that each feature of each query head is, i64[h, e].
    """

    attention: Attention
    q: Stream
    k: Stream
    v: Stream
    out: Linear | None
    columns: np.ndarray
    why_not: str = ""

    @property
    def linears(self) -> list[Linear]:
        """The linears that make queries, keys and values, each once."""
        return list(dict.fromkeys(s.linear for s in (self.q, self.k, self.v)))

    @property
    def name(self) -> str:
        """The weight that makes the keys."""
        return self.k.const.name

    @property
    def movable(self) -> bool:
        """Whether query heads may change places: nothing but weights says which is which."""
        op = self.attention
        told = op.bias is not None and op.bias.type.rank > 2 and op.bias.type.dims[-3] != 1
        return not told and (op.sinks is None or (isinstance(op.sinks, Const) and op.sinks.users == (op,)))


def makers(op: Attention) -> list[Const]:
    """The weights of the linears nearest above the keys and values of an attention."""
    found: dict[Const, None] = {}
    seen: set[Value] = set()
    pending = [op.v, op.k]
    while pending:
        value = pending.pop()
        if value in seen or value.op is None:
            continue
        seen.add(value)
        if isinstance(value.op, Linear):
            found.update({value.op.w: None} if isinstance(value.op.w, Const) else {})
        else:
            pending += value.op.operands[::-1]
    return list(found)


def find_site(op: Attention, channels: Channels) -> Site:
    """What makes and reads the heads of an attention; channels: of its func. Raises PassError, naming the value, where they
    cannot be merged."""
    assert op.func is not None
    for value in (op.k, op.v):
        if sum(isinstance(user, Attention) for user in value.users) > 1:
            raise _refused("two attentions read them", value)
    q, k, v = (_stream(op.func, value) for value in (op.q, op.k, op.v))
    _own(op, (q, k, v))
    return Site(op, q, k, v, *_reader(op, channels))


def _refused(reason: str, value: Value) -> PassError:
    return PassError(f"heads cannot be merged: {reason}, at {value!r}", where=value.op.loc if value.op is not None else None,
                     hint="name its weights in skip to leave this attention as it is")


def _stream(func: Func, value: Value) -> Stream:
    steps: list[Step] = []
    way: list[tuple[Op, int]] = []
    at = value
    while not isinstance(at.op, Linear):
        op = at.op
        match op:
            case Rope() | RmsNorm() | LayerNorm():
                if op.x.type.dims[-1] != value.type.dims[-1]:
                    raise _refused(f"{op.name} takes several heads together", at)
                steps.insert(0, op)
            case Reshape() | Transpose() | Split() | Slice() | Cast():
                pass
            case _:
                raise _refused(f"{op.name if op else 'a parameter'} stands between a linear and attention", at)
        way.append((op, op.results.index(at)))
        at = op.x
    linear = at.op
    env = least_sizes(func.module)
    places: np.ndarray = np.broadcast_to(np.arange(linear.w.type.shape[0]), tuple(evaluate(d, env) for d in at.type.dims))
    for op, index in reversed(way):
        if isinstance(op, Reshape | Transpose | Split | Slice):
            made = op.bind(env).reference(places)
            places = made[index] if isinstance(op, Split) else made
    batch, _, length, _ = value.type.dims
    if linear.x.type.dims[:-1] != (batch, length) or not (places == places[:1, :, :1]).all():
        raise _refused("its heads are not made by the rows of a linear", value)
    return Stream(linear, np.ascontiguousarray(places[0, :, 0]), tuple(steps))


def _own(op: Attention, streams: tuple[Stream, ...]) -> None:
    """Raises PassError unless the linears make these heads and nothing else, from weights of their own."""
    for linear in dict.fromkeys(s.linear for s in streams):
        rows = np.concatenate([s.rows.reshape(-1) for s in streams if s.linear is linear])
        for const in (linear.w, linear.bias):
            if const is not None and not (isinstance(const, Const) and const.users == (linear,) and const.type.dtype.is_float):
                raise _refused("a weight that makes them is no float weight of its own", const)
        if not np.array_equal(np.sort(rows), np.arange(linear.w.type.shape[0])):
            raise _refused("the linear that makes them makes something else, too, or the same for several", linear.result)
        if any(user not in _between(op, linear) for user in linear.result.users):
            raise _refused("they are also used elsewhere", linear.result)


def _between(op: Attention, linear: Linear) -> set[Op]:
    """The ops on the ways from a linear to attention, attention included."""
    found: set[Op] = set()
    pending = [op.q, op.k, op.v]
    while pending:
        made = pending.pop().op
        if made is not None and made is not linear and made not in found and not isinstance(made, Linear):
            found.add(made)
            pending.append(made.operands[0])
    found.add(op)
    return found


def _reader(op: Attention, channels: Channels) -> tuple[Linear | None, np.ndarray, str]:
    dims = tuple(evaluate(d, channels.env) for d in op.result.type.dims)
    heads, size = dims[1], dims[3]
    places = np.broadcast_to(np.arange(heads * size).reshape(1, heads, 1, size), dims)
    read = channels.reach(op.result, places)
    none = np.empty((heads, 0), np.int64)
    if read.blocked or len(read.readers) != 1:
        return None, none, f"what attention gives, {op.result!r}, is not read by one linear alone"
    linear, at = next(iter(read.readers.items()))
    if not isinstance(linear.w, Const) or linear.w.users != (linear,) or not linear.w.type.dtype.is_float:
        return None, none, f"{linear.w!r}, which reads what attention gives, is no float weight of its own"
    if NONE in at or len(at) != heads * size or len(np.unique(at)) != len(at):
        return None, none, f"{linear.w!r} reads more than what attention gives"
    return linear, np.argsort(at, kind="stable").reshape(heads, size), ""


def linears_behind(func: Func, start: Op, end: Op | None) -> list[Linear]:
    """The linears behind `start` and before `end` (all, for None) that have float weights of their own and make no result of the
    func."""
    behind = func.ops[func.ops.index(start) + 1:None if end is None else func.ops.index(end)]
    return [op for op in behind if isinstance(op, Linear) and isinstance(op.w, Const) and op.w.users == (op,)
            and op.w.type.dtype.is_float and op.result not in func.returns]
