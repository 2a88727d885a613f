"""Layout and lookup by demand: the index changes, guards say where there is something to read."""

from __future__ import annotations

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.index import flattened, simplified, unflattened
from ingot.backends.triton.pull import Guard, Guards, Index, Pull, pulled
from ingot.backends.triton.pull_pointwise import aligned
from ingot.backends.triton.term import Term, joined, literal
from ingot.ir.dims import Dim
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Pick, Reshape, Slice, Split, Take, TakeAlong, Transpose, Triangle
from ingot.ir.types import bool_
from ingot.ir.value import Value


def _with(index: Index, axis: int, new: Dim) -> Index:
    axis %= len(index)
    return (*index[:axis], new, *index[axis + 1:])


@pulled.register
def reshape(op: Reshape, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    source = op.x.type.dims
    return pull.at(op.x, unflattened(simplified(flattened(index, op.shape), pull.bounds), source, pull.bounds), guards)


@pulled.register
def transpose(op: Transpose, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return pull.at(op.x, tuple(index[op.perm.index(i)] for i in range(len(index))), guards)


@pulled.register
def expand(op: Expand, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return pull.at(op.x, aligned(index, op.x), guards)


@pulled.register
def slice_(op: Slice, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return pull.at(op.x, _with(index, op.axis, index[op.axis] * op.step + op.start), guards)


@pulled.register
def split(op: Split, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    start: Dim = 0
    for size in op.sizes[:op.results.index(value)]:
        start = start + size
    return pull.at(op.x, _with(index, op.axis, index[op.axis] + start), guards)


@pulled.register
def flip(op: Flip, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    for axis in op.axes_:
        index = _with(index, axis, op.x.type.dims[axis] - 1 - index[axis])
    return pull.at(op.x, index, guards)


@pulled.register
def concat(op: Concat, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    """Every part is read where it lies, under a guard, and the nearest one that is meant is chosen."""
    at = index[op.axis]
    start: Dim = 0
    terms: list[Term] = []
    ends: list[Term] = []
    for x in op.xs:
        size = x.type.dims[op.axis]
        if size == 0:
            continue
        stop = start + size
        conditions = []
        if start != 0:
            conditions.append(pull.guard(_compare(pull, at, ">=", start)))
        if len(ends) < len(op.xs) - 1:
            ends.append(pull.name("before", _compare(pull, at, "<", stop)))
            conditions.append(pull.guard(ends[-1]))
        terms.append(pull.at(x, _with(index, op.axis, at - start), _more(guards, *conditions)).wide())
        start = stop
    if not terms:
        raise NoKernel("nothing is joined")
    chosen = terms[-1]
    for term, inside in zip(terms[-2::-1], ends[len(terms) - 2::-1]):
        chosen = pull.name(value.hint or "concat", Term(f"tl.where({inside.text}, {term.text}, {chosen.text})", chosen.dtype,
                                                        joined(inside, term, chosen), atomic=True))
    return chosen


@pulled.register
def pad(op: Pad, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    if op.mode != "constant":
        raise NoKernel(f"padding by {op.mode} has no kernel")
    conditions = []
    at: list[Dim] = []
    for i, size, before, after in zip(index, op.x.type.dims, op.pads[::2], op.pads[1::2]):
        if before != 0:
            conditions.append(pull.name("inside", _compare(pull, i, ">=", before)))
        if after != 0:
            conditions.append(pull.name("inside", _compare(pull, i, "<", before + size)))
        at.append(i - before)
    if 0 in op.x.type.dims:
        raise NoKernel("nothing is padded")
    inner = pull.at(op.x, tuple(at), _more(guards, *map(pull.guard, conditions))).wide()
    if not conditions:
        return inner
    where = " & ".join(c.text for c in conditions)
    text = f"tl.where({where}, {inner.text}, {literal(op.value, inner.dtype)})"
    return pull.name(value.hint or "pad", Term(text, inner.dtype, joined(inner, *conditions), atomic=True))


@pulled.register
def triangle(op: Triangle, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    inner = pull.at(op.x, index, guards).wide()
    row, column = pull.dim(index[-2]), pull.dim(index[-1])
    inside = Term(f"{column.operand} - {row.operand} {'>=' if op.upper else '<='} {op.diagonal}", bool_, joined(row, column))
    text = f"tl.where({inside.text}, {inner.text}, {literal(0, inner.dtype)})"
    return pull.name(value.hint or "triangle", Term(text, inner.dtype, joined(inner, inside), atomic=True))


@pulled.register
def embedding(op: Embedding, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    row = pull.loaded_index(pull.at(op.ids, index[:-1], guards), op.w.type.dims[0])
    return pull.at(op.w, (row, index[-1]), guards)


@pulled.register
def take(op: Take, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    axis, rank = op.axis % op.x.type.rank, op.index.type.rank
    at = pull.loaded_index(pull.at(op.index, index[axis:axis + rank], guards), op.x.type.dims[axis])
    return pull.at(op.x, (*index[:axis], at, *index[axis + rank:]), guards)


@pulled.register
def pick(op: Pick, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    axis = op.axis % op.x.type.rank
    at = pull.loaded_index(pull.at(op.index, (index[0], index[axis]), guards), op.x.type.dims[axis])
    return pull.at(op.x, _with(index, axis, at), guards)


@pulled.register
def take_along(op: TakeAlong, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    at = pull.loaded_index(pull.at(op.index, index, guards), op.x.type.dims[op.axis])
    return pull.at(op.x, _with(index, op.axis, at), guards)


def _compare(pull: Pull, at: Dim, operator: str, limit: Dim) -> Term:
    left, right = pull.dim(at), pull.dim(limit)
    return Term(f"{left.operand} {operator} {right.operand}", bool_, joined(left, right))


def _more(guards: Guards, *further: Guard) -> Guards:
    return (*guards, *(g for g in further if g not in guards))
