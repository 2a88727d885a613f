"""Rules that find rotary position embeddings: x * cos + rotate(x) * sin, in halves or interleaved, whole or in part."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.ir.dims import Dim
from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.layout import Concat, Reshape, Slice, Split, Transpose
from ingot.ir.ops.pointwise import Add, Cast, Cos, Mul, Neg, Sin, Sub
from ingot.ir.ops.rope import Rope
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, V
from ingot.ir.rewrite import Rule
from ingot.ir.types import TensorType
from ingot.ir.value import Value
from ingot.passes.cleanup.fold_constants import folded
from ingot.passes.cleanup.simplify_pointwise import number
from ingot.passes.recognition.norm import widened
from ingot.passes.recognition.rotary_angle import Angle, read_angle


@dataclass
class Turn:
    """A rotary embedding found: of x, by an angle, with features paired as `half` or `interleaved`."""

    x: Value
    angle: Angle
    pairing: str

    @property
    def sequence(self) -> int:
        """The axis of x the positions run along, -2 or -3."""
        return next((a for a in reversed(self.angle.axes) if a in (-2, -3)), -2)

    @property
    def positions(self) -> tuple[Dim, Dim]:
        """The shape [b, s] of the positions."""
        dims = dict(zip(self.angle.axes, self.angle.pos.type.dims))
        return dims.get(-4, 1), dims.get(self.sequence, 1)


class RotatedSum(Rule):
    """x * cos + rotate(x) * sin, where rotate(x) is (-x2, x1) of the halves or of neighbouring pairs."""

    pattern = P(Add, V("left"), V("right"))

    def check(self, m: Match) -> None:
        left, right = m["left"].op, m["right"].op
        if not isinstance(left, Mul) or not isinstance(right, Mul):
            raise Elsewhere("it is no sum of products", m.op.result)
        for straight, crossed in ((left, right), (right, left)):
            for rotated, sine in _orders(crossed):
                found = _rotation(widened(rotated))
                if found is None:
                    continue
                x, pairing = found
                cosine = next((c for v, c in _orders(straight) if widened(v) is widened(x)), None)
                if cosine is None:
                    raise NoMatch("what is rotated is not what the cosine multiplies", x)
                m.extra["turn"] = turn = Turn(x, _angle(cosine, sine), pairing)
                if turn.angle.pairing != pairing and turn.angle.inv_freq.type.size != 1:
                    raise NoMatch(f"features are paired {pairing}, frequencies {turn.angle.pairing}", sine)
                _fits(turn, m.op.result.type)
                return
        raise Elsewhere("neither product has a rotated factor", m.op.result)

    def build(self, m: Match, b: Builder) -> Value:
        return _rope(b, m["turn"], m.op.result.type)


class RotatedParts(Rule):
    """concat(a * cos - b * sin, b * cos + a * sin, rest) for the halves a, b of x, or of its first features, and the others."""

    pattern = P(Concat, bind="concat")

    def check(self, m: Match) -> None:
        xs = m["concat"].xs
        if m["concat"].axis % m.op.result.type.rank != m.op.result.type.rank - 1:
            raise Elsewhere("it joins no features", m.op.result)
        if len(xs) < 2 or not isinstance(xs[0].op, Sub) or not isinstance(xs[1].op, Add):
            raise Elsewhere("the parts are no difference and sum of products", m.op.result)
        products = [v.op for v in (*xs[0].op.operands, *xs[1].op.operands) if isinstance(v.op, Mul)]
        if len(products) < 4:
            raise Elsewhere("the parts are no difference and sum of products", xs[0])
        a_cos, b_sin, first, second = products
        for b_cos, a_sin in ((first, second), (second, first)):
            for a, cosine in _orders(a_cos):
                for b, sine in _orders(b_sin):
                    x, rest = _halves(widened(a), widened(b)), xs[2:]
                    if x is None:
                        x, rest = _halves(widened(a), widened(b), rest=xs[2:]), ()
                    if x is None or (b, cosine) not in _orders(b_cos) or (a, sine) not in _orders(a_sin):
                        continue
                    m.extra["turn"] = turn = Turn(x, _angle(cosine, sine), "half")
                    m.extra["rest"] = rest
                    if turn.angle.pairing != "once":
                        raise NoMatch("halves are multiplied by frequencies of the whole", cosine)
                    result = m.op.result.type
                    _fits(turn, result.with_dims(*result.dims[:-1], x.type.dims[-1]), pairs=a.type.dims[-1])
                    return
        raise NoMatch("the products are not those of a rotation", m.op.result)

    def build(self, m: Match, b: Builder) -> Value:
        turned = _rope(b, m["turn"], m.op.result.type)
        return b(Concat((turned, *m["rest"]))) if m["rest"] else turned


class PartialRotation(Rule):
    """The first features turned and joined with the others as they were: a rope of fewer frequencies."""

    pattern = P(Concat, P(Rope, bind="rope"), P((Split,), bind="rest"))

    def check(self, m: Match) -> None:
        rope, rest = m["rope"], m["rest"]
        split = rope.x.op
        if split is not rest or split.results != (rope.x, m.op.operands[1]):
            raise NoMatch("the other features are not what the split left", m.op.operands[1])
        axes = {op.attrs["axis"] % rope.x.type.rank for op in (split, m.op)}
        if axes != {3} or rope.rotary_dim != rope.x.type.dims[3]:
            raise NoMatch("only part of the split turns", rope.x)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["rope"].clone(x=m["rest"].x))


def _orders(product: Op) -> list[tuple[Value, Value]]:
    x, y = product.operands
    return [(x, y), (y, x)]


def _angle(cosine: Value, sine: Value) -> Angle:
    """The angle of both, pairing and scale included. Raises NoMatch."""
    cos, sin = read_angle(cosine), read_angle(sine)
    if (cos.function, sin.function) != (Cos, Sin):
        raise NoMatch("cosine and sine stand in each other's place", cosine)
    if not cos.same_turn(sin):
        raise NoMatch("cosine and sine are of different angles", sine)
    return cos


def _rotation(value: Value) -> tuple[Value, str] | None:
    """x and its pairing when a value is (-x2, x1)."""
    op = value.op
    if isinstance(op, Concat) and len(op.xs) == 2 and op.axis % value.type.rank == value.type.rank - 1:
        if isinstance(op.xs[0].op, Neg):
            x = _halves(op.xs[1], op.xs[0].op.x)
            return None if x is None else (x, "half")
        return None
    if isinstance(op, Reshape) and isinstance(op.x.op, Concat) and op.x.type.dims[-1] == 2 and len(op.x.op.xs) == 2:
        odd, even = (_unpaired(v) for v in op.x.op.xs)
        if odd is None or even is None:
            return None
        if isinstance(odd.op, Neg):
            odd = odd.op.x
        elif isinstance(odd.op, Reshape) and isinstance(odd.op.x.op, Neg):
            odd = odd.op.x.op.x
        else:
            return None
        x = _neighbours(even, odd)
        return None if x is None or x.type.dims != value.type.dims else (x, "interleaved")
    return None


def _unpaired(value: Value) -> Value | None:
    """What was given a last axis of size one."""
    op = value.op
    return op.x if isinstance(op, Reshape) and value.type.dims == (*op.x.type.dims, 1) else None


def _halves(low: Value, high: Value, *, rest: tuple[Value, ...] = ()) -> Value | None:
    """x when `low` and `high` are the first and second half of its features, or of those before `rest`."""
    split = low.op
    if not isinstance(split, Split) or split.results != (low, high, *rest) or split.sizes[0] != split.sizes[1]:
        return None
    return split.x if split.axis % split.x.type.rank == split.x.type.rank - 1 else None


def _neighbours(even: Value, odd: Value) -> Value | None:
    """x when `even` and `odd` are its features at even and odd places."""
    a, c = even.op, odd.op
    if not isinstance(a, Slice) or not isinstance(c, Slice) or a.x is not c.x:
        return None
    last = a.x.type.rank - 1
    if (a.step, c.step, a.start, c.start) != (2, 2, 0, 1) or a.axis % (last + 1) != last or c.axis % (last + 1) != last:
        return None
    return a.x if even.type == odd.type and even.type.dims[-1] * 2 == a.x.type.dims[-1] else None


def _fits(turn: Turn, result: TensorType, *, pairs: Dim | None = None) -> None:
    """Raises NoMatch unless x is [b, h, s, d] or [b, s, h, d] and the positions run along its axes b and s.

    pairs: of features that turn; None when all do.
    """
    x, angle = turn.x, turn.angle
    if x.type.rank != 4 or x.type.dims != result.dims:
        raise NoMatch(f"the features are {x.type}, not [b, h, s, d]", x)
    pairs = x.type.dims[-1] // 2 if pairs is None else pairs
    if angle.inv_freq.type.size != pairs:
        raise NoMatch(f"{angle.inv_freq.type.size} frequencies for {pairs} pairs of features", angle.inv_freq)
    axes = [a for a, d in zip(angle.axes, angle.pos.type.dims) if d != 1]
    if axes not in ([-2], [-3], [-4], [-4, -2], [-4, -3], []):
        raise NoMatch("positions run along other axes than batch and sequence", angle.pos)
    if turn.positions[1] != x.type.dims[turn.sequence]:
        raise NoMatch(f"there are {turn.positions[1]} positions for {x.type.dims[turn.sequence]} places", angle.pos)


def _rope(b: Builder, turn: Turn, result: TensorType) -> Value:
    x, angle = turn.x, turn.angle
    pos = angle.pos
    if pos.type.dims != turn.positions:
        pos = b(Reshape(pos, turn.positions))
    freq = angle.inv_freq
    name = freq.hint or "inv_freq"
    if angle.speed != 1:
        freq = folded(b, Mul(freq, number(b, angle.speed, freq.type)), name=f"{name}.scaled", made_by="recognize")
    if freq.type.rank != 1:
        freq = folded(b, Reshape(freq, (freq.type.size,)), name=f"{name}.flat", made_by="recognize")
    if x.type.dtype != result.dtype:
        x = b(Cast(x, result.dtype))
    if turn.sequence == -3:
        x = b(Transpose(x, (0, 2, 1, 3)))
    y = b(Rope(x, pos, freq, interleaved=turn.pairing == "interleaved", scale=angle.scale))
    return b(Transpose(y, (0, 2, 1, 3))) if turn.sequence == -3 else y


RULES: tuple[Rule, ...] = (RotatedSum(), RotatedParts(), PartialRotation())
