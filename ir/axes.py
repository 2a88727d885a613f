"""Axis maps: which axis of which operand becomes which axis of which result.

Index notation, one bracket per operand field and per result: `x[... i], w[o i], bias[o] -> [... o]`. A label shared by
operands must agree in size; a label missing from the results is contracted; `i!` keeps its axis but mixes its
positions (a norm, a softmax); `(h d)` is an axis made of several, outermost first; `_` is an axis of size one or one
that carries nothing; `a+b` is a concatenation; `...` stands for the remaining leading axes, aligned at the right.
Written once per op, it serves shape inference, KV-cache insertion, batch detection and structured pruning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingot.errors import IRError
from ingot.ir.dims import Dim
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.ir.op import Op

Axis = tuple[str, ...]
"""The labels one axis is made of, outermost first; `()` carries nothing."""


@dataclass(frozen=True)
class AxisMap:
    """operands, results: the axes of each, in the order of `op.operands` and `op.results`.

    mixed: labels whose positions are combined with each other. sums: label -> the labels it concatenates, in order.
    causal: labels mixed only backwards (position i sees positions <= i), as in causal attention.
    multiples: label -> the label it is a multiple of (query heads over key heads: consecutive ones share).
    sizes: of labels that stand alone in no axis.
    """

    operands: tuple[tuple[Axis, ...], ...]
    results: tuple[tuple[Axis, ...], ...]
    mixed: frozenset[str] = frozenset()
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    causal: frozenset[str] = frozenset()
    multiples: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, Dim] = field(default_factory=dict)

    def follow(self, operand: int, axis: int) -> tuple[str, list[tuple[int, int]]]:
        """Where one operand axis goes: its label and the (result, axis) pairs that are that axis and nothing else.

        The label is "" for an axis that is composite or carries nothing.
        """
        labels = self.operands[operand][axis]
        if len(labels) != 1:
            return "", []
        label = labels[0]
        found = [(r, a) for r, axes in enumerate(self.results) for a, ls in enumerate(axes) if ls == (label,)]
        return label, found


_BRACKET = re.compile(r"(\w*)\[([^\]]*)\]")
_AXIS = re.compile(r"\(([^)]*)\)|(\S+)")


def parse_axes(op: Op, spec: str = "", **extra: object) -> AxisMap:
    """The AxisMap of an op from index notation (its class's, unless `spec` is given).

    extra: further AxisMap fields (causal, multiples). Raises IRError when the notation does not fit the operands.
    """
    spec = spec or op.axes
    if not spec:
        raise IRError(f"{op.name} has no axis map", where=op.loc, hint=f"declare `axes` on {type(op).__name__}")
    left, _, right = spec.partition("->")
    by_name = {m[1]: m[2] for m in _BRACKET.finditer(left)}
    mixed: set[str] = set()
    operands: list[tuple[Axis, ...]] = []
    for name, value in op.operand_fields:
        if isinstance(value, Value):
            if name not in by_name:
                raise IRError(f"the axis map of {op.name} says nothing of operand {name}: {spec}")
            operands.append(_axes(by_name[name], value.type.rank, mixed))
    outs = [m[2] for m in _BRACKET.finditer(right)]
    results = [_axes(text, r.type.rank, mixed) for text, r in zip(outs, op.results, strict=True)]
    sizes_one = [[d == 1 for d in v.type.dims] for v in op.operands]
    wide = {ls for axes, ones in zip(operands, sizes_one) for ls, one in zip(axes, ones) if not one}
    operands = [tuple(() if one and ls in wide else ls for ls, one in zip(axes, ones))
                for axes, ones in zip(operands, sizes_one)]
    return AxisMap(tuple(operands), tuple(results), frozenset(mixed), **extra)  # type: ignore[arg-type]


def _axes(text: str, rank: int, mixed: set[str]) -> tuple[Axis, ...]:
    out: list[Axis] = []
    tokens = [(m[1] if m[1] is not None else m[2]) for m in _AXIS.finditer(text)]
    for token in tokens:
        if token == "...":
            missing = rank - (len(tokens) - 1)
            out.extend((f"...{missing - i}",) for i in range(missing))
            continue
        labels = [] if token == "_" else token.split()
        mixed.update(label[:-1] for label in labels if label.endswith("!"))
        out.append(tuple(label.rstrip("!") for label in labels))
    if len(out) != rank:
        raise IRError(f"[{text}] names {len(out)} axes of a tensor with {rank}")
    return tuple(out)


def elementwise(op: Op) -> AxisMap:
    """The map of a broadcasting elementwise op: every result axis comes from the operand axes aligned with it."""
    rank = op.results[0].type.rank
    operands: list[tuple[Axis, ...]] = []
    for value in op.operands:
        shift = rank - value.type.rank
        axes = [() if d == 1 and op.results[0].type.dims[i + shift] != 1 else (f"a{i + shift}",)
                for i, d in enumerate(value.type.dims)]
        operands.append(tuple(axes))
    return AxisMap(tuple(operands), (tuple((f"a{i}",) for i in range(rank)),))


def reshape_axes(source: tuple[Dim, ...], target: tuple[Dim, ...]) -> AxisMap:
    """The map of a reshape: runs of axes with equal products split or merge; a run n -> m (both > 1) is mixed."""
    left: list[Axis] = []
    right: list[Axis] = []
    mixed: set[str] = set()
    i = j = n = 0
    while i < len(source) or j < len(target):
        if i < len(source) and source[i] == 1 and not (j < len(target) and target[j] == 1):
            left.append(())
            i += 1
            continue
        if j < len(target) and target[j] == 1 and not (i < len(source) and source[i] == 1):
            right.append(())
            j += 1
            continue
        di, dj = _run(source[i:], target[j:])
        group = [f"r{n + k}" for k in range(max(di, dj))]
        n += len(group)
        if di == dj == 1 and source[i] == target[j]:
            left.append((group[0],))
            right.append((group[0],))
        elif di == 1 and dj > 1:
            left.append(tuple(group))
            right.extend((g,) for g in group)
        elif dj == 1 and di > 1:
            left.extend((g,) for g in group)
            right.append(tuple(group))
        else:
            left.extend((f"m{n}.{k}",) for k in range(di))
            right.extend((f"w{n}.{k}",) for k in range(dj))
            mixed.update(f"m{n}.{k}" for k in range(di))
        i, j = i + di, j + dj
    return AxisMap((tuple(left),), (tuple(right),), frozenset(mixed))


def _run(source: tuple[Dim, ...], target: tuple[Dim, ...]) -> tuple[int, int]:
    """How many leading dims of each side have equal products, fewest first."""
    tops: list[Dim] = []
    total: Dim = 1
    for d in source:
        total = total * d
        tops.append(total)
    total = 1
    for j, d in enumerate(target):
        total = total * d
        if total in tops:
            return tops.index(total) + 1, j + 1
    return len(source), len(target)
