"""Where channels go: from the op that makes them to the linears that read them, however they are moved in between."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ingot.ir.dims import evaluate
from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.layout import Concat, Expand, Pick, Reshape, Slice, Split, Take, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Cast, LeakyRelu, Mul, Neg, Relu
from ingot.ir.value import Value
from ingot.passes.contracts.samples import least_sizes

NONE = -1
"""Stands where there is no channel."""


@dataclass
class Reach:
    """Where the channels of a value (its last axis) come out.

    readers: which channel stands at each input of a linear, i64[k] by linear. blocked: channels that come, there or besides,
    to an op that does more than pass them on, or to an output. at: the channel at every place of every value on the way, for
    the least size of every dim.
    """

    readers: dict[Linear, np.ndarray] = field(default_factory=dict)
    blocked: set[int] = field(default_factory=set)
    at: dict[Value, np.ndarray] = field(default_factory=dict)

    def block(self, channels: np.ndarray) -> None:
        self.blocked.update(np.unique(channels[channels != NONE]).tolist())


class Channels:
    """Follows channels through a func.

    mixing: only through ops that treat all channels alike, so that even sums of channels may be followed. Otherwise also
    through rectifiers and products with something else, which pass a positive factor on a channel on unchanged.
    """

    def __init__(self, func: Func, *, mixing: bool = False) -> None:
        self.env = least_sizes(func.module)
        self.order = {op: i for i, op in enumerate(func.ops)}
        self.mixing = mixing

    def reach(self, value: Value, channels: np.ndarray | None = None) -> Reach:
        """Where the channels of a value go; channel i is position i of its last axis, or where `channels` has i."""
        dims = self._dims(value)
        found = Reach(at={value: np.broadcast_to(np.arange(dims[-1]), dims) if channels is None else channels})
        pending = set(value.users)
        while pending:
            op = min(pending, key=lambda user: self.order.get(user, len(self.order)))
            pending.discard(op)
            for result, channels in zip(op.results, self._pass(op, found)):
                if (channels != NONE).any():
                    found.at[result] = channels
                    pending.update(result.users)
        return found

    def _pass(self, op: Op, found: Reach) -> tuple[np.ndarray, ...]:
        """The channels in the results of an op; () when it ends the way, and blocks or reads what came."""
        given = {v: found.at[v] for v in op.operands if v in found.at}
        match op:
            case Linear() if list(given) == [op.x] and _alike(given[op.x], range(given[op.x].ndim - 1)):
                found.readers[op] = given[op.x].reshape(-1, given[op.x].shape[-1])[0]
                return ()
            case Cast() | Neg():
                return (given[op.x],)
            case (Relu() | LeakyRelu()) if not self.mixing:
                return (given[op.x],)
            case Mul():
                return self._product(op, given, found)
            case Reshape() | Transpose() | Slice() | Expand():
                return (op.bind(self.env).reference(given[op.x]),)
            case Split():
                return tuple(op.bind(self.env).reference(given[op.x]))
            case Concat():
                parts = [given[v] if v in given else np.full(self._dims(v), NONE) for v in op.xs]
                return (op.bind(self.env).reference(tuple(parts)),)
            case (Take() | Pick()) if op.x in given and _alike(given[op.x], [op.axis]):
                return (np.broadcast_to(given[op.x].take([0], op.axis), self._dims(op.result)),)
            case Attention() if op.v in given and _alike(given[op.v], [0, 2]):
                for value in given.keys() - {op.v}:
                    found.block(given[value])
                heads, shared = op.heads
                return (np.broadcast_to(np.repeat(given[op.v][:1, :, :1], heads // shared, 1), self._dims(op.result)),)
        for channels in given.values():
            found.block(channels)
        return ()

    def _product(self, op: Mul, given: dict[Value, np.ndarray], found: Reach) -> tuple[np.ndarray, ...]:
        dims = self._dims(op.result)
        x, y = (np.broadcast_to(given.get(v, np.array(NONE)), dims) for v in op.operands)
        if self.mixing:
            scalar = [v for v in op.operands if all(d == 1 for d in v.type.dims)]
            if len(given) > 1 or not scalar or scalar[0] in given:
                found.block(np.concatenate([x.reshape(-1), y.reshape(-1)]))
                return ()
        both = (x != NONE) & (y != NONE)
        found.block(x[both])
        found.block(y[both])
        return (np.where(both, NONE, np.maximum(x, y)),)

    def _dims(self, value: Value) -> tuple[int, ...]:
        return tuple(evaluate(d, self.env) for d in value.type.dims)


def _alike(channels: np.ndarray, axes: range | list[int]) -> bool:
    """Whether the channels are the same all along some axes."""
    return all((channels == channels.take([0], axis)).all() for axis in axes)
