"""The partition of a func into groups of ops, one kernel each.

Ops that only say where something lies (`FREE`) belong to nobody: whoever wants their result reads through them. Every other
op joins the group that made its newest operand, if one kernel can do both, and opens a group of its own if not. A group
stands where its first op stood, and takes in only ops whose operands were made there or before: so the order of groups is
an order of launches, and every value in memory is written by one of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from ingot.backends.triton.coded import for_products
from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.kernel import Variant
from ingot.backends.triton.outline import Outlined, outline
from ingot.backends.triton.write import ANCHORS, named, write
from ingot.ir.dims import Dim
from ingot.ir.module import Func
from ingot.ir.op import Op, Return
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.creation import Creation
from ingot.ir.ops.layout import Expand, Flip, Pick, Reshape, Slice, Split, Take, Transpose
from ingot.ir.ops.pointwise import Abs, Cast, Mul, Pointwise
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.rope import Rope
from ingot.ir.value import Const, Value

FREE = (Reshape, Transpose, Expand, Slice, Split, Flip, Pick, Take, Creation, Dequantize)
AHEAD = 6
"""Elementwise ops looked ahead when an op alone does not fit (the two halves of a gated MLP meet later)."""


@dataclass
class Group:
    """ops: in graph order. outputs: what of their results lies in memory. outlined: the group as a func. variants: ways
    to compute it by kernels; none when torch runs it, and `reason` says why."""

    ops: list[Op]
    outputs: tuple[Value, ...]
    outlined: Outlined
    variants: tuple[Variant, ...] = ()
    reason: str = ""


@dataclass
class Partition:
    """Groups in order of launch, while they form."""

    func: Func
    paged: Mapping[Value, int] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    _place: dict[Op, int] = field(default_factory=dict)
    _wanted: set[Op] = field(default_factory=set)
    _written: dict[object, tuple[Variant, ...] | str] = field(default_factory=dict)
    """What became of every outlined group tried, by its text: equal layers are written once."""

    def build(self) -> list[Group]:
        self._wanted = _owned(self.func)
        pending = [op for op in self.func.ops if op in self._wanted]
        while pending:
            op = pending.pop(0)
            taken = self._join(op, pending)
            pending = [p for p in pending if p not in taken]
        return self.groups

    def _join(self, op: Op, pending: list[Op]) -> set[Op]:
        """Puts `op` into a group; the set of ops of `pending` that went along."""
        last = max((self._place[p] for p in self._makers([op])), default=-1)
        for place, more in self._tries(op, pending, last):
            group = self._group([*self.groups[place].ops, *more])
            if group.variants:
                self.groups[place] = group
                self._place.update(dict.fromkeys(more, place))
                return set(more[1:])
        self.groups.append(self._group([op]))
        self._place[op] = len(self.groups) - 1
        return set()

    def _tries(self, op: Op, pending: list[Op], last: int) -> Iterator[tuple[int, list[Op]]]:
        """Groups the op may join, and with whom: the one that made its newest operand, alone and then with elementwise ops
        that follow from it and need nothing newer; then later ones that do the same number of elements side by side."""
        if isinstance(op, ANCHORS):
            return
        if last >= 0 and self.groups[last].variants:
            more = [op]
            yield last, list(more)
            for other in pending[:AHEAD]:
                if not isinstance(op, Pointwise) or not isinstance(other, Pointwise):
                    break
                makers = self._makers([other])
                if any(p in more for p in makers) and all(p in more or self._place.get(p, last + 1) <= last for p in makers):
                    more.append(other)
                    yield last, list(more)
        if not _flat(op):
            return
        for place in range(len(self.groups) - 1, last, -1):
            group = self.groups[place]
            if group.variants and all(map(_flat, group.ops)) and _elements(group.ops[-1]) == _elements(op):
                yield place, [op]

    def _makers(self, ops: list[Op]) -> set[Op]:
        """The ops whose results these ops read, straight or through free ops."""
        found: set[Op] = set()
        stack = [v for op in ops for v in op.operands]
        while stack:
            op = stack.pop().op
            if op is None or op in found:
                continue
            if op in self._wanted:
                found.add(op)
            else:
                stack += op.operands
        return found

    def _group(self, ops: list[Op]) -> Group:
        inside = set(ops)
        outputs = tuple(v for op in ops for v in op.results if not self._readers(v) <= inside)
        made = outline(ops, outputs, name="kernel", placed=self._place, paged=self.paged)
        key = (made.text, tuple(isinstance(v, Const) for v in made.inputs))
        if key not in self._written:
            twin = outline(ops, outputs, name="kernel", placed=self._place, paged=self.paged)
            try:
                self._written[key] = write(twin, name=named(ops))
            except NoKernel as error:
                self._written[key] = str(error)
        found = self._written[key]
        return Group(ops, outputs, made, reason=found) if isinstance(found, str) else Group(ops, outputs, made, found)

    def _readers(self, value: Value) -> set[Op]:
        """Who reads a value, straight or through free ops that belong to nobody; the return among them."""
        return set(_readers(value, self._wanted))


def _flat(op: Op) -> bool:
    """Whether an op is done element by element."""
    return isinstance(op, Pointwise | Cast | CacheWrite | Rope)


def _elements(op: Op) -> Dim:
    """How many elements a kernel computes for an op."""
    return (op.new if isinstance(op, CacheWrite) else op.result).type.size


def _readers(value: Value, owned: Container[Op]) -> Iterator[Op]:
    """The owned ops that read a value, and the return, straight or through others."""
    for user in value.users:
        if user in owned or isinstance(user, Return):
            yield user
        else:
            for result in user.results:
                yield from _readers(result, owned)


def _owned(func: Func) -> set[Op]:
    """The ops that need a place in a group, of those that lead to a result.

    Free ops need none unless they are returned. Nor do elementwise ops of which only attention reads (the cache decoded, a
    query turned): attention does them as it reads. Nor do those that decode what products of codes read (see `coded`). Casts of
    weights are done by whoever reads the weight.
    """
    live: set[Op] = set()
    stack = [v.op for v in func.returns]
    while stack:
        op = stack.pop()
        if op is not None and op not in live:
            live.add(op)
            stack += [v.op for v in op.operands]
    returned = {v.op for v in func.returns}
    owned = {op for op in live if not _free(op) or op in returned}
    for op in reversed(func.ops):
        if op in owned and op not in returned and (
                _only_for_attention(op, owned) or _cast_weight(op) or _for_products(op, owned)):
            owned.discard(op)
    return owned


def _free(op: Op) -> bool:
    return isinstance(op, FREE)


def _only_for_attention(op: Op, owned: Container[Op]) -> bool:
    if not isinstance(op, Pointwise | Cast | Rope):
        return False
    readers = [r for v in op.results for r in _readers(v, owned)]
    return all(isinstance(r, Attention) for r in readers) and len(readers) == 1


def _for_products(op: Op, owned: Container[Op]) -> bool:
    return isinstance(op, Abs | Cast | Mul) and for_products(op, list(_readers(op.results[0], owned)))


def _cast_weight(op: Op) -> bool:
    return isinstance(op, Cast) and isinstance(op.x, Const)


def partition(func: Func, *, paged: Mapping[Value, int] | None = None) -> list[Group]:
    """The groups of a func in order of launch. Pure: the func is left as it is. paged: see `paging.pageable`."""
    return Partition(func, paged or {}).build()
