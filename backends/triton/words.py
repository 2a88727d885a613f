"""Weights in codes, as a kernel reads them: words, steps, zero points; see `packing` for what lies where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ingot.backends.triton.index import quotient, remainder
from ingot.backends.triton.kernel import Pointer
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.packing import QUAD, Form, block_size, fits_words, is_table, stored_bits
from ingot.backends.triton.pull import Guards, Pull
from ingot.backends.triton.roots import Opened
from ingot.backends.triton.term import Term
from ingot.ir.dims import Dim
from ingot.ir.formats import Integer, format_named
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, bool_, f8e4m3, f8e8m0
from ingot.ir.value import Const


@dataclass(frozen=True)
class Packed:
    """A weight read as words of codes (see `packing`). pointers: by part. form: of its steps. columns: elements of a row."""

    pointers: dict[str, Pointer]
    form: Form
    columns: int

    @property
    def bits(self) -> int:
        """What a code takes in a word."""
        return stored_bits(self.form.format)

    @property
    def per(self) -> int:
        """Codes in a word."""
        return 32 // self.bits

    @property
    def block(self) -> int:
        """Elements of a block."""
        return block_size(self.form.format, self.form.group)

    @property
    def run(self) -> int:
        """Words of a block."""
        return self.block // self.per

    @property
    def quad(self) -> int:
        """Words read at once by a thread, all of one block."""
        return next(n for n in (QUAD, 2, 1) if self.run % n == 0)

    @property
    def parts(self) -> int:
        """Groups of a block: so many steps has a word."""
        return self.block // self.form.group

    @property
    def words(self) -> int:
        """Words of a row."""
        return -(-self.columns // self.block) * self.run

    def columns_of(self, part: str) -> int:
        """Columns of the array of a part."""
        return Form(part, self.form.format, self.form.group, (), self.form.bytes).shape(1, self.columns)[1]


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
    narrow = op.scale.type.dtype in (f8e4m3, f8e8m0) and op.offset is None and (
        op.tensor_scale is None or not op.tensor_scale.type.rank)
    form = Form("steps", op.format, op.group, sources, op.scale.type.dtype.name if narrow else "")
    parts = {"words": True, "steps": True, "tensor": narrow and op.tensor_scale is not None, "table": is_table(op.format),
             "zeros": op.zero is not None}
    forms = [replace(form, part=part) for part, wanted in parts.items() if wanted]
    pointers = {f.part: Pointer(made.pull.source.names.take(f"{f.part}_ptr"), f.kind, "in", sources[0], f) for f in forms}
    return Packed(pointers, form, op.packed.type.shape[1])


class Words:
    """Writes how a tile of words is read, for columns at some distances (`shifts`) from an axis.

    word: index of a tile of words in a row. block: index of the block that holds each.
    """

    def __init__(self, pull: Pull, packed: Packed, columns: dict[int, Dim], *, word: Dim, block: Dim, mask: str) -> None:
        self.pull, self.packed, self.columns = pull, packed, columns
        self.block, self.mask = block, mask
        pointer = packed.pointers["words"].name
        self.words = {shift: pull.source.define("words", self._load(pointer, column * packed.words + word))
                      for shift, column in columns.items()}
        if "tensor" in packed.pointers:
            pull.source.line(f"tensor = tl.load({packed.pointers['tensor'].name})", level=0)

    def _load(self, pointer: str, at: Dim) -> str:
        return f"tl.load({pointer} + {self.pull.dim(at).text}, mask={self.mask}, other=0)"

    @contextmanager
    def group(self) -> Iterator[tuple[dict[int, str], dict[int, str], str, int]]:
        """A loop over the groups of a block: steps and zero points by column, the first code of a word in it, and how many."""
        packed, pull = self.packed, self.pull
        count = packed.per // packed.parts
        if packed.parts == 1:
            yield *self._steps(self.block), "", count
            return
        with pull.block(f"for group in tl.static_range({packed.parts}):"):
            group = pull.axis("group", "group", packed.parts, None)
            yield *self._steps(self.block * packed.parts + group), f"group * {count} + ", count

    @contextmanager
    def codes(self, first: str, count: int) -> Iterator[tuple[Dim, str]]:
        """A loop over codes of a word: their place in the word as an index and as source."""
        with self.pull.block(f"for code in tl.static_range({count}):"):
            text = f"{first}code"
            yield self.pull.axis("part", f"({text})" if first else text, self.packed.per, None), text

    def _steps(self, group: Dim) -> tuple[dict[int, str], dict[int, str]]:
        """Loads of the steps of one group, times what the decoded numbers lack."""
        pull, packed, source = self.pull, self.packed, self.pull.source
        pointers = {part: p.name for part, p in packed.pointers.items()}
        steps: dict[int, str] = {}
        zeros: dict[int, str] = {}
        for shift, column in self.columns.items():
            width = packed.columns_of("steps")
            if packed.form.bytes:
                scales = self._load(pointers["steps"], column * width + quotient(group, 4, pull.bounds))
                place = pull.dim(8 * remainder(group, 4, pull.bounds))
                text = source.define("scales", f"{scales} >> {place.operand}")
                text = f"device.minifloat({text}, 0, 4, 3)" if packed.form.bytes == f8e4m3.name else f"device.exponent({text})"
                factor = self.factor * (256.0 if packed.form.bytes == f8e4m3.name else 1.0)
            else:
                text, factor = self._load(pointers["steps"], column * width + group), self.factor
            if factor != 1:
                text = f"{text} * {factor!r}"
            steps[shift] = source.define("step", f"{text} * tensor" if "tensor" in pointers else text)
            if "zeros" in pointers:
                zeros[shift] = source.define("zero", self._load(pointers["zeros"], column * packed.columns_of("zeros") + group))
        return steps, zeros

    @property
    def factor(self) -> float:
        """What `number` times this, times the inverse of `scale`, is the code's value."""
        fmt = format_named(self.packed.form.format)
        if isinstance(fmt, Integer) or is_table(fmt.name):
            return 1.0
        exponent, _ = _split(fmt.code)
        return 2.0 ** (16 - (1 << (exponent - 1)))

    def number(self, shift: int, part: str, zeros: dict[int, str], *, bits: str = "0x4B000000") -> str:
        """The source of what a code stands for under step 1, over `scale(part)` and `factor`. bits: see `device.integer`."""
        fmt, words = format_named(self.packed.form.format), self.words[shift]
        if isinstance(fmt, Integer):
            zero = zeros.get(shift, repr(float(fmt.middle)))
            return f"device.integer({words}, {zero}, {bits}, {part}, {self.packed.bits})"
        if is_table(fmt.name):
            at = f"({words} >> ({part}) * {self.packed.bits}) & {(1 << self.packed.bits) - 1}"
            return f"tl.load({self.packed.pointers['table'].name} + ({at}))"
        exponent, fraction = _split(fmt.code)
        return f"device.minifloat({words}, {part}, {exponent}, {fraction})"

    def code(self, shift: int, part: str) -> str:
        """The source of a code of 8 bits as it is."""
        integer = isinstance(format_named(self.packed.form.format), Integer)
        return f"device.code({self.words[shift]}, {part}, {int(integer)})"

    def scale(self, part: str) -> str:
        """The power of two that integers come multiplied by, inverted: source with a leading ` * `, or nothing."""
        if not isinstance(format_named(self.packed.form.format), Integer):
            return ""
        return f" * device.unshifted({part}, {self.packed.bits})"


def _split(code: DType) -> tuple[int, int]:
    """Exponent and fraction bits of a small float: 2 and 1 of f4e2m1."""
    return int(code.name[-3]), int(code.name[-1])


def element(pull: Pull, packed: Packed, word: Dim, part: Dim) -> Dim:
    """Which element of a row code `part` of a word is."""
    run = packed.run
    return quotient(word, run, pull.bounds) * packed.block + part * run + remainder(word, run, pull.bounds)


def within(pull: Pull, packed: Packed, at: Dim) -> Guards:
    """The guard that keeps reads inside the row where the last block is short."""
    if packed.columns % packed.block == 0:
        return ()
    term = pull.dim(at)
    return (pull.guard(Term(f"{term.operand} < {packed.columns}", bool_, term.axes)),)
