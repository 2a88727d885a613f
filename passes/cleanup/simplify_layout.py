"""Rules on ops that only move elements: no-ops removed, chains merged, consecutive slices written as one split."""

from __future__ import annotations

from ingot.ir.dims import Dim
from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.layout import Concat, Expand, Reshape, Slice, Split, Take, TakeAlong, Transpose
from ingot.ir.ops.reduce import Along
from ingot.ir.pattern import Either, Elsewhere, Match, NoMatch, P, V, unread
from ingot.ir.rewrite import Rule
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight


class NothingMoves(Rule):
    """A reshape, expand, transpose, slice, concat or split that gives back its operand."""

    pattern = P((Reshape, Expand, Transpose, Slice, Concat, Split))

    def check(self, m: Match) -> None:
        match op := m.op:
            case Reshape() | Expand():
                same = op.x.type == op.result.type
            case Transpose():
                same = op.perm == tuple(range(len(op.perm)))
            case Slice():
                same = op.start == 0 and op.step == 1 and op.x.type == op.result.type
            case _:
                same = len(op.operands) == len(op.results) == 1
        if not same:
            raise Elsewhere(f"{op.name} changes its operand", op.operands[0])

    def build(self, m: Match, b: Builder) -> Value:
        return m.op.operands[0]


class AxisForm(Rule):
    """Axes count from the front, except the last one where it is the default."""

    pattern = P((Slice, Concat, Split, Take, TakeAlong, Along))

    def check(self, m: Match) -> None:
        axis = _axis(m.op)
        default = next(f.default for f in m.op.fields if f.name == "axis")
        if axis == m.op.operands[0].type.rank - 1 and default == -1:
            axis = -1
        if m.op.attrs["axis"] == axis:
            raise Elsewhere("the axis has this form")
        m.extra["axis"] = axis

    def build(self, m: Match, b: Builder) -> Value | tuple[Value, ...]:
        return b.add(m.op.clone(axis=m["axis"])).results


class UniformStays(Rule):
    """A uniform tensor moved, broadcast or picked from is a uniform tensor of the new shape."""

    pattern = Either(P((Reshape, Expand, Transpose, Slice), P((Scalar, Full), bind="uniform")),
                     P((Take, TakeAlong), P(Full, bind="uniform"), V("index")))

    def build(self, m: Match, b: Builder) -> Value:
        type_ = m.op.result.type
        if not type_.rank:
            return b(Scalar(m["uniform"].value, type_.dtype))
        return b(Full(type_.dims, m["uniform"].value, type_.dtype))


class ReshapeOfReshape(Rule):
    """Only the last of two reshapes counts."""

    pattern = P(Reshape, P(Reshape, V("x")))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Reshape(m["x"], m.op.result.type.dims))


class ExpandOfExpand(Rule):
    """Only the last of two expands counts."""

    pattern = P(Expand, P(Expand, V("x")))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Expand(m["x"], m.op.result.type.dims))


class TransposeOfTranspose(Rule):
    """Two permutations are one."""

    pattern = P(Transpose, P(Transpose, V("x"), bind="inner"), bind="outer")

    def build(self, m: Match, b: Builder) -> Value:
        inner = m["inner"].perm
        return b(Transpose(m["x"], tuple(inner[i] for i in m["outer"].perm)))


class SliceOfSlice(Rule):
    """Two slices of one axis are one, when the inner takes every position."""

    pattern = P(Slice, P(Slice, V("x"), bind="inner", step=1), bind="outer")

    def check(self, m: Match) -> None:
        if _axis(m["inner"]) != _axis(m["outer"]):
            raise NoMatch("the slices cut different axes", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        inner, outer = m["inner"], m["outer"]
        return b(Slice(m["x"], outer.axis, inner.start + outer.start, inner.start + outer.stop, outer.step))


class SliceOfConcat(Rule):
    """A slice that is exactly some of the joined tensors."""

    pattern = P(Slice, P(Concat, bind="concat"), bind="slice", step=1)

    def check(self, m: Match) -> None:
        concat, cut = m["concat"], m["slice"]
        if _axis(concat) != _axis(cut):
            raise NoMatch("cut along another axis", concat.result)
        m.extra["parts"] = _covered([(x, x.type.dims[_axis(concat)]) for x in concat.xs], cut, concat.result)

    def build(self, m: Match, b: Builder) -> Value:
        parts: list[Value] = m["parts"]
        return parts[0] if len(parts) == 1 else b(Concat(tuple(parts), m["concat"].axis))


class ConcatOfConcat(Rule):
    """Tensors joined along the same axis in two steps are joined in one, when nothing else reads the first."""

    pattern = P(Concat, bind="outer")

    def check(self, m: Match) -> None:
        if not any(_joins(x, _axis(m.op)) for x in m["outer"].xs):
            raise Elsewhere("no operand is a concat along the same axis", m["outer"].xs[0])

    def build(self, m: Match, b: Builder) -> Value:
        flat: list[Value] = []
        for x in m["outer"].xs:
            flat += x.op.xs if _joins(x, _axis(m.op)) else [x]
        return b(Concat(tuple(flat), m["outer"].axis))


class TakeRun(Rule):
    """Consecutive positions picked by a constant index are a slice."""

    pattern = P(Take, V("x"), V("index"), bind="take")

    def check(self, m: Match) -> None:
        index = m["index"]
        size = m["x"].type.dims[_axis(m.op)]
        if index.type.rank != 1 or not isinstance(index, Const) or not isinstance(index.weight, ArrayWeight):
            raise (NoMatch if unread(index) else Elsewhere)(f"the index is no list of known numbers{unread(index)}", index)
        first, *rest = (int(i) for i in index.weight.array) if index.type.size else (0, 0)
        if rest != list(range(first + 1, first + 1 + len(rest))) or (first < 0 and not isinstance(size, int)):
            raise NoMatch("the positions are not consecutive", index)
        m.extra["start"] = first % size if isinstance(size, int) else first
        m.extra["count"] = 1 + len(rest)

    def build(self, m: Match, b: Builder) -> Value:
        return b(Slice(m["x"], _axis(m.op), m["start"], m["start"] + m["count"]))


class EmptyParts(Rule):
    """Tensors without elements add nothing to a concat."""

    pattern = P(Concat, bind="concat")

    def check(self, m: Match) -> None:
        axis = _axis(m.op)
        m.extra["kept"] = kept = tuple(x for x in m["concat"].xs if x.type.dims[axis] != 0)
        if not kept or len(kept) == len(m["concat"].xs):
            raise Elsewhere("no part is empty", m.op.result)

    def build(self, m: Match, b: Builder) -> Value:
        return b(Concat(m["kept"], m["concat"].axis))


class ConcatOfSplit(Rule):
    """Consecutive parts of one split joined in order again: the tensor itself when they are all of it."""

    pattern = P(Concat, bind="concat")

    def check(self, m: Match) -> None:
        source = m["concat"].xs[0].op
        if not isinstance(source, Split) or _axis(source) != _axis(m["concat"]) or m["concat"].xs != source.results:
            raise Elsewhere("these are not the parts of one split in order", m["concat"].xs[0])

    def build(self, m: Match, b: Builder) -> Value:
        source: Value = m["concat"].xs[0].op.x
        return source


class SplitOfConcat(Rule):
    """A concat cut where it was joined."""

    pattern = P(Split, P(Concat, bind="concat"), bind="split")

    def check(self, m: Match) -> None:
        axis = _axis(m["split"])
        if axis != _axis(m["concat"]) or [x.type.dims[axis] for x in m["concat"].xs] != list(m["split"].sizes):
            raise NoMatch("cut elsewhere than joined", m["concat"].result)

    def build(self, m: Match, b: Builder) -> tuple[Value, ...]:
        return m["concat"].xs  # type: ignore[no-any-return]


class SlicesToSplit(Rule):
    """Slices that together are all of an axis, without overlap, become one split."""

    pattern = P(Slice, V("x"), bind="slice", step=1)

    def check(self, m: Match) -> None:
        x, axis = m["x"], _axis(m["slice"])
        cuts = [u for u in x.users if isinstance(u, Slice) and u.func is m.op.func and _axis(u) == axis and u.step == 1]
        at: Dim = 0
        order: list[Slice] = []
        while at != x.type.dims[axis]:
            found = next((c for c in cuts if c.start == at and c.stop != at), None)
            if found is None:
                raise NoMatch(f"no slice begins at {at} of axis {axis}", x)
            order.append(found)
            at = found.stop
        if m["slice"] not in order:
            raise NoMatch("it overlaps the others", x)
        m.extra["order"] = order

    def build(self, m: Match, b: Builder) -> Value:
        x, order = m["x"], m["order"]
        axis = _axis(m["slice"])
        split = Split(x, tuple(s.result.type.dims[axis] for s in order), -1 if axis == x.type.rank - 1 else axis)
        split.loc = m.op.loc
        # Right after the definition of x, so that it precedes every slice whatever their order.
        if x.op is not None and x.op.func is b.func:
            b.func.insert(split, after=x.op)
        else:
            b.func.insert(split, before=b.func.ops[0])
        own: Value = split.results[order.index(m["slice"])]
        for cut, part in zip(order, split.results):
            if cut is not m["slice"]:
                b.func.replace(cut.result, part)
        return own


class TransposeOfOneAxis(Rule):
    """A transpose is a reshape when at most one axis is longer than one."""

    pattern = P(Transpose, V("x"))

    def check(self, m: Match) -> None:
        wide = [d for d in m["x"].type.dims if d != 1]
        if len(wide) > 1:
            raise Elsewhere("more than one axis is longer than one", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Reshape(m["x"], m.op.result.type.dims))


def _axis(op: Op) -> int:
    """The axis an op works along, counted from the front."""
    axis: int = op.attrs["axis"]
    return axis % op.operands[0].type.rank


def _joins(x: Value, axis: int) -> bool:
    return isinstance(x.op, Concat) and x.n_uses == 1 and _axis(x.op) == axis


def _covered(parts: list[tuple[Value, Dim]], cut: Slice, where: Value) -> list[Value]:
    """The parts that lie in [start, stop) of a cut. Raises NoMatch when an end is not between two parts."""
    at: Dim = 0
    inside: list[Value] = []
    started = False
    for value, size in parts:
        started = started or at == cut.start
        if started and at != cut.stop:
            inside.append(value)
        at = at + size
        if started and at == cut.stop:
            return inside
    raise NoMatch(f"[{cut.start}, {cut.stop}) is not where tensors were joined", where)


RULES: tuple[Rule, ...] = (
    NothingMoves(), AxisForm(), UniformStays(), ReshapeOfReshape(), ExpandOfExpand(), TransposeOfTranspose(),
    TransposeOfOneAxis(), SliceOfSlice(), SliceOfConcat(), SplitOfConcat(), EmptyParts(), TakeRun(), ConcatOfSplit(),
    ConcatOfConcat(), SlicesToSplit())
