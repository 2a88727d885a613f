"""Weights in codes, as a kernel reads them: words, steps, zero points; see `packing` for what lies where."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.backends.triton.index import quotient, remainder
from ingot.backends.triton.kernel import Pointer
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.packing import Form, fits_words, is_table, stored_bits
from ingot.backends.triton.pull import Guards, Pull
from ingot.backends.triton.roots import Opened
from ingot.backends.triton.term import Term
from ingot.ir.dims import Dim
from ingot.ir.formats import format_named
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import bool_
from ingot.ir.value import Const


@dataclass(frozen=True)
class Packed:
    """A weight read as words of codes (see `packing`). pointers: by part. bits: a code takes in a word, code_bits: it has.
    columns: elements of a row. per: codes in a word; run: words of a group."""

    pointers: dict[str, Pointer]
    bits: int
    code_bits: int
    group: int
    columns: int

    @property
    def per(self) -> int:
        return 32 // self.bits

    @property
    def run(self) -> int:
        return self.group // self.per

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def words(self) -> int:
        """Words of a row."""
        return self.groups * self.run


def packed_weight(made: Opened, outlined: Outlined, product: Linear | MatMul) -> Packed | None:
    """How the right operand of a product is read where it is a weight in codes; None where it is anything else."""
    op = product.w.op if isinstance(product, Linear) else None
    if not isinstance(op, Dequantize) or op.packed.type.rank != 2 or not fits_words(op.format, op.group):
        return None
    params = outlined.func.params
    where = [-1 if v is None else params.index(v) if v in params else None
             for v in (op.packed, op.scale, op.zero, op.tensor_scale, op.offset)]
    if any(i is None or (i >= 0 and not isinstance(outlined.inputs[i], Const)) for i in where):
        return None
    sources = tuple(i for i in where if i is not None)
    parts = {"words": "i32", "steps": "fp32"} | ({"table": "fp32"} if is_table(op.format) else {})
    if op.zero is not None:
        parts["zeros"] = "fp32"
    pointers = {part: Pointer(made.pull.source.names.take(f"{part}_ptr"), kind, "in", sources[0],
                              Form(part, op.format, op.group, sources)) for part, kind in parts.items()}
    return Packed(pointers, stored_bits(op.format), format_named(op.format).bits, op.group, op.packed.type.shape[1])


@dataclass(frozen=True)
class Read:
    """Variables of one tile of a weight: its words, their steps, and what a variable `code` stands for under step 1."""

    words: str
    step: str
    number: str


def read_words(pull: Pull, packed: Packed, column: Dim, word: Dim, mask: str) -> Read:
    """Writes the loads of some columns' words."""
    source = pull.source
    pointers = {part: p.name for part, p in packed.pointers.items()}
    at = pull.dim(column * packed.words + word).text
    group = pull.dim(column * packed.groups + quotient(word, packed.run, pull.bounds))
    words = source.define("words", f"tl.load({pointers['words']} + {at}, mask={mask}, other=0)")
    step = source.define("step", f"tl.load({pointers['steps']} + {group.text}, mask={mask}, other=0)")
    if "table" in pointers:
        return Read(words, step, f"tl.load({pointers['table']} + code)")
    zero = str(float(1 << (packed.code_bits - 1)))
    if "zeros" in pointers:
        zero = source.define("zero", f"tl.load({pointers['zeros']} + {group.text}, mask={mask}, other=0)")
    return Read(words, step, f"device.whole(code) - {zero}")


def element(pull: Pull, packed: Packed, word: Dim, part: Dim) -> Dim:
    """Which element of a row code `part` of a word is."""
    run = packed.run
    return quotient(word, run, pull.bounds) * packed.group + part * run + remainder(word, run, pull.bounds)


def within(pull: Pull, packed: Packed, at: Dim) -> Guards:
    """The guard that keeps reads inside the row where the last group is short."""
    if packed.columns % packed.group == 0:
        return ()
    term = pull.dim(at)
    return (pull.guard(Term(f"{term.operand} < {packed.columns}", bool_, term.axes)),)


def decoded(packed: Packed, read: Read) -> str:
    """Writes nothing: the source of the codes of part `part` of the words."""
    return f"({read.words} >> (part * {packed.bits})) & {(1 << packed.bits) - 1}"
