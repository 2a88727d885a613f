"""Elementwise ops and creations by demand."""

from __future__ import annotations

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.index import quotient
from ingot.backends.triton.pull import Guards, Index, Pull, pulled
from ingot.backends.triton.term import TRITON, Term, spelled, widened
from ingot.ir.formats import Integer, format_named
from ingot.ir.ops.creation import Arange, Full, Scalar, Size
from ingot.ir.ops.pointwise import And, Cast, Not, Or, Pointwise, Where
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, TensorType, f8e8m0, f32, promote
from ingot.ir.value import Value


def aligned(index: Index, value: Value) -> Index:
    """The index into an operand that broadcasts: axes counted from the right."""
    return index[len(index) - value.type.rank:]


def common(values: tuple[Value, ...]) -> DType:
    """What the operands of an elementwise op are computed in."""
    kind = values[0].type
    for value in values[1:]:
        kind = TensorType(promote(kind, value.type), max(kind.dims, value.type.dims, key=len))
    return widened(kind.dtype)


@pulled.register
def pointwise(op: Pointwise, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    terms = [pull.at(v, aligned(index, v), guards).wide() for v in op.operands]
    if isinstance(op, Where):
        kind = common(op.operands[1:])
        terms[1:] = [t.to(kind) for t in terms[1:]]
    elif not isinstance(op, And | Or | Not):
        kind = common(op.operands)
        terms = [t.to(kind) for t in terms]
    # A compound operand is named, for a scalar expression may use it several times.
    terms = [t if t.number is not None else pull.name("x", t) for t in terms]
    if all(t.number is not None for t in terms):
        terms[0] = Term(f"tl.full((), {terms[0].text}, {spelled(terms[0].dtype)})", terms[0].dtype, atomic=True)
    return pull.name(value.hint or op.name, op.scalar(TRITON, *terms))


@pulled.register
def cast(op: Cast, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    term = pull.at(op.x, index, guards).wide()
    if op.dtype.is_float and term.dtype.is_float and op.dtype.bits > 8:
        # As everywhere in a kernel, a float is rounded where it is stored, not before.
        return term.to(widened(op.dtype))
    if op.dtype == f8e8m0:
        return pull.name(value.hint or "cast", term.to(op.dtype))
    if op.dtype.is_float and op.dtype.bits <= 8:
        return pull.name(value.hint or "cast", term.to(op.dtype).to(f32))
    return pull.name(value.hint or "cast", term.to(op.dtype))


@pulled.register
def scalar(op: Scalar, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return Term.constant(op.value, widened(op.dtype))


@pulled.register
def full(op: Full, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return Term.constant(op.value, widened(op.dtype))


@pulled.register
def arange(op: Arange, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return _number(pull, pull.dim(index[0] * op.step + op.start), op.dtype)


@pulled.register
def size(op: Size, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    return _number(pull, pull.dim(op.dim), op.dtype)


def _number(pull: Pull, term: Term, dtype: DType) -> Term:
    """An index as a value: index arithmetic may be narrower than the type says."""
    if term.text.isdigit():
        return Term.constant(int(term.text), widened(dtype))
    named = pull.name("count", Term(f"({term.text}) + tl.zeros((), tl.int64)", term.dtype, term.axes))
    return named.to(widened(dtype))


@pulled.register
def dequantize(op: Dequantize, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    """Integers under plain steps; the weights of linears have a kernel of their own, for every format."""
    fmt = format_named(op.format)
    if not isinstance(fmt, Integer) or op.tensor_scale is not None or op.offset is not None:
        raise NoKernel(f"{op.format} under coded steps is decoded in torch")
    last = quotient(index[-1], op.group, pull.bounds)
    rows = tuple(0 if size == 1 else i for size, i in zip(op.scale.type.dims, (*index[:-1], last)))
    code = pull.at(op.packed, index, guards).to(f32)
    scale = pull.at(op.scale, rows, guards).to(f32)
    zero = pull.at(op.zero, rows, guards).to(f32) if op.zero is not None else float(fmt.levels // 2)
    return pull.name(value.hint or "w", (code - zero) * scale)
