"""Rotary position embedding by demand: an element needs itself and its partner, one sine and one cosine."""

from __future__ import annotations

from ingot.backends.triton.index import quotient, remainder
from ingot.backends.triton.pull import Guards, Index, Pull, pulled
from ingot.backends.triton.term import Term, call, joined
from ingot.ir.dims import Dim
from ingot.ir.ops.rope import Rope
from ingot.ir.types import bool_, f32
from ingot.ir.value import Value


@pulled.register
def rope(op: Rope, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    b, h, s, d = index
    width = op.rotary_dim
    half = width // 2
    if op.interleaved:
        twin, pair = remainder(d, 2, pull.bounds), quotient(d, 2, pull.bounds)
        partner: Dim = d + 1 - 2 * twin
        first = Term(f"{pull.dim(twin).operand} == 0", bool_, pull.dim(twin).axes)
    else:
        # The partner is half the turning width away: d + half, from the start again past the end.
        pair = remainder(d, half, pull.bounds)
        partner = remainder(d + half, width, pull.bounds)
        first = Term(f"{pull.dim(d).operand} < {half}", bool_, pull.dim(d).axes)
    first = pull.name("first", first)
    inside: Term | None = None
    within = guards
    if op.x.type.dims[3] != width:
        at = pull.dim(d)
        inside = pull.name("turns", Term(f"{at.operand} < {width}", bool_, at.axes))
        within = (*guards, pull.guard(inside))
    rows = 0 if op.pos.type.dims[0] == 1 else b
    kind = f32 if op.x.type.dtype.bits < 64 else op.x.type.dtype
    work = op.inv_freq.type.dtype if op.inv_freq.type.dtype.bits == 64 else f32
    pos = pull.at(op.pos, (rows, s), guards).to(work)
    angle = pull.name("angle", pos * pull.at(op.inv_freq, (pair,), within).to(work))
    cos, sin = (t.to(kind) for t in _turned(pull, angle))
    x, other = pull.at(op.x, index, guards).to(kind), pull.at(op.x, (b, h, s, partner), within).to(kind)
    signed = Term(f"tl.where({first.text}, -{other.operand}, {other.text})", kind, joined(first, other), atomic=True)
    turned = x * cos + signed * sin
    if op.scale != 1:
        turned = turned * op.scale
    if inside is not None:
        turned = Term(f"tl.where({inside.text}, {turned.text}, {x.text})", kind, joined(inside, turned, x), atomic=True)
    return pull.name(value.hint or "rope", turned)


def _turned(pull: Pull, angle: Term) -> tuple[Term, Term]:
    """Cosine and sine of an angle."""
    if angle.dtype != f32:
        return pull.name("cos", call("tl.cos", angle)), pull.name("sin", call("tl.sin", angle))
    cos, sin = pull.source.names.take("cos"), pull.source.names.take("sin")
    pull.source.line(f"{cos}, {sin} = device.turn({angle.text})", level=pull.level(angle.axes))
    return Term(cos, f32, angle.axes, atomic=True), Term(sin, f32, angle.axes, atomic=True)
