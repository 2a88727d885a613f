"""Follows the sequence axis of a decoder through its graph by axis maps: the proof that positions do not mix.

Starting from the sequence axis of the token ids, every op must either carry the axis along untouched or be causal
attention. Anything else (a pooling over time, a convolution, bidirectional attention) is the op that makes the model no
causal decoder, and is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ingot.errors import PassError
from ingot.ir.dims import Expr, symbols
from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Arange, Creation, Full
from ingot.ir.ops.layout import Pick
from ingot.ir.value import Value


@dataclass
class SequenceMap:
    """axis: the sequence axis of every value that has one. attentions: the causal ones over the sequence, in order.

    aranges: ops that count positions 0, 1, ... along the sequence.
    """

    length: Expr
    axis: dict[Value, int] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)
    aranges: list[Arange] = field(default_factory=list)


def follow_sequence(func: Func, *, ids: str = "ids") -> SequenceMap:
    """The SequenceMap of a decoder whose token ids [batch, sequence] are the parameter `ids`.

    Raises PassError, naming the op and its source line, when positions mix other than by causal attention.
    """
    source = func.param(ids)
    if source.type.rank != 2 or not isinstance(source.type.dims[1], Expr):
        raise PassError(f"%{ids} is {source.type}; a decoder's token ids are [batch, sequence] with a symbolic sequence")
    found = SequenceMap(length=source.type.dims[1])
    for param in func.params:
        for axis, dim in enumerate(param.type.dims):
            if dim == found.length:
                found.axis[param] = axis
    for op in func.ops:
        if isinstance(op, Creation):
            _creation(found, op)
        elif isinstance(op, Attention) and (op.k in found.axis or op.v in found.axis):
            _attention(found, op)
        elif not (isinstance(op, Pick) and op.index in func.params):  # chosen rows: nothing runs along the sequence after it
            _carry(found, op)
    return found


def _creation(found: SequenceMap, op: Creation) -> None:
    name = str(found.length)
    axes = [i for i, d in enumerate(op.result.type.dims) if d == found.length]
    if isinstance(op, Arange) and op.count == found.length and op.start == 0 and op.step == 1:
        found.aranges.append(op)
    elif not (isinstance(op, Full) and len(axes) <= 1) and any(_mentions(v, name) for v in op.attrs.values()):
        raise _mixed(op, "depends on the sequence length")
    if axes:
        found.axis[op.result] = axes[0]


def _mentions(value: object, name: str) -> bool:
    if isinstance(value, tuple):
        return any(_mentions(v, name) for v in value)
    return isinstance(value, Expr) and name in symbols(value)


def _attention(found: SequenceMap, op: Attention) -> None:
    if op.pos is not None:
        raise PassError("attention already has positions: a cache was inserted before", where=op.loc, op=op)
    if not op.causal:
        raise _mixed(op, "is attention that sees later positions")
    if [found.axis.get(v) for v in (op.q, op.k, op.v)] != [2, 2, 2]:
        raise _mixed(op, "is attention whose q, k and v do not all run along the sequence")
    if op.bias is not None and op.bias in found.axis:
        raise _mixed(op, "adds a bias that depends on the position")
    found.attentions.append(op)
    found.axis[op.result] = 2


def _carry(found: SequenceMap, op: Op) -> None:
    carried = [i for i, v in enumerate(op.operands) if v in found.axis]
    if not carried:
        return
    axes = op.axis_map()
    for index in carried:
        value = op.operands[index]
        label, places = axes.follow(index, found.axis[value])
        if not label or label in axes.mixed or len({r for r, _ in places}) != len(op.results):
            raise _mixed(op, "combines positions of the sequence")
        for result, axis in places:
            known = found.axis.setdefault(op.results[result], axis)
            if known != axis:
                raise _mixed(op, "has the sequence along two axes")


def _mixed(op: Op, how: str) -> PassError:
    result = f"%{op.results[0].hint}" if op.results and op.results[0].hint else op.name
    return PassError(f"not a causal decoder: {op.name} ({result}) {how}", where=op.loc, op=op,
                     hint="only causal attention may look along the sequence; compile it without a KV cache")


