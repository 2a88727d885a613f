"""Which axes of a func stand and fall together, by the axis maps of its ops.

The dependency graph of Torch-Pruning (DepGraph, Fang et al. 2023, arXiv 2301.12900, section 3.2) links layers by rules for kinds
of layers; here every axis is a space, and the index notation of an op unifies the spaces of its operands and results.
"""

from __future__ import annotations

from collections.abc import Iterator

from ingot.errors import IRError
from ingot.ir.axes import Axis, AxisMap
from ingot.ir.dims import Dim
from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.conv import Conv
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.norm import LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.reduce import Mean, Sum, Variance
from ingot.ir.value import Const, Value
from ingot.passes.pruning.spaces import Space, joined, product, unify

ANY_SIZE = (RmsNorm, LayerNorm, SkipRmsNorm, SkipLayerNorm, Sum, Mean, Variance)
"""Ops that combine the positions of an axis in a way that has a meaning for fewer of them."""


class Coupling:
    """The space of every axis of every value of a func; None for symbolic axes and those of one position.

    roles: the spaces that have a part in attention, convolutions, norms or lookups, by what they are there: "heads", "shared"
    (heads of keys), "features", "conv", "width".
    """

    def __init__(self, func: Func) -> None:
        self.func = func
        self.spaces: dict[Value, tuple[Space | None, ...]] = {}
        self.roles: dict[str, list[Space]] = {"heads": [], "shared": [], "features": [], "conv": [], "width": []}
        self._interface(func.params, "is a parameter's")
        for op in func.ops:
            try:
                self._tie(op, op.axis_map())
            except (IRError, NotImplementedError):
                self._interface((*op.operands, *op.results), f"is not followed through {op.name}")
        self._interface(func.returns, "is an output's")
        for const in func.module.consts.values():
            if any(user.func is not func for user in const.users):
                self._interface([const], "belongs to several funcs")

    def of(self, value: Value) -> tuple[Space | None, ...]:
        """The spaces of the axes of a value."""
        if value not in self.spaces:
            self.spaces[value] = tuple(Space(d) if isinstance(d, int) and d > 1 else None for d in value.type.dims)
        return self.spaces[value]

    def atoms(self) -> dict[Space, str]:
        """Every atom of the weights, in graph order, with why it is frozen ("" where it is not)."""
        found: dict[Space, str] = {}
        for value, spaces in self.spaces.items():
            for space in spaces:
                for atom, reason in space.atoms() if space is not None else ():
                    if isinstance(value, Const) or atom in found:
                        found[atom] = found.get(atom, "") or reason
        for spaces in self.spaces.values():  # frozen as a part of something that holds no weight
            for space in spaces:
                for atom, reason in space.atoms() if space is not None else ():
                    if atom in found:
                        found[atom] = found[atom] or reason
        return found

    def role(self, name: str) -> set[Space]:
        """The atoms of the spaces with a role."""
        return {atom for space in self.roles[name] for atom, _ in space.atoms()}

    def _interface(self, values: list[Value] | tuple[Value, ...], reason: str) -> None:
        for value in values:
            for space in self.of(value):
                if space is not None:
                    space.freeze(reason)

    def _tie(self, op: Op, axes: AxisMap) -> None:
        """Unify what the map of an op says is the same."""
        labels = {name: Space(size) for name, size in _sizes(op, axes).items() if isinstance(size, int) and size > 0}
        standing = {label for axis in (a for v in axes.operands for a in v) for label in axis}
        for value, ends in zip((*op.operands, *op.results), (*axes.operands, *axes.results), strict=True):
            for dim, space, axis in zip(value.type.dims, self.of(value), ends, strict=True):
                self._axis(op, dim, space, axis, labels)
        for total, parts in axes.sums.items():
            if total in labels and all(p in labels or _sizes(op, axes).get(p) == 0 for p in parts):
                unify(labels[total], joined([labels[p] for p in parts if p in labels]))
                standing |= {total, *parts}
            else:
                _freeze(labels, (total, *parts), f"is divided by {op.name}")
        for many, few in axes.multiples.items():
            if many in labels and few in labels:
                unify(labels[many], product([labels[few], Space(labels[many].size // labels[few].size)]))
        if not isinstance(op, ANY_SIZE):
            _freeze(labels, axes.mixed, f"is mixed by {op.name}")
        _freeze(labels, labels.keys() - standing, f"is made by {op.name}")
        self._note(op, axes, labels)

    def _axis(self, op: Op, dim: Dim, space: Space | None, axis: Axis, labels: dict[str, Space]) -> None:
        if space is None:
            if not isinstance(dim, int):
                _freeze(labels, axis, f"is part of a symbolic axis of {op.name}")
        elif axis and all(label in labels for label in axis):
            unify(space, product([labels[label] for label in axis]))
        else:
            space.freeze(f"is not followed through {op.name}")

    def _note(self, op: Op, axes: AxisMap, labels: dict[str, Space]) -> None:
        def note(role: str, *names: str) -> None:
            self.roles[role] += [labels[name] for name in names if name in labels]

        match op:
            case Attention():
                note("heads", "h")
                note("shared", "g")
                note("features", "d", "e")
            case Conv():
                note("conv", "o", "i", "g")
            case Embedding():
                note("width", "d")
            case _ if isinstance(op, ANY_SIZE):
                note("width", *axes.mixed)


def _sizes(op: Op, axes: AxisMap) -> dict[str, Dim]:
    """The size of every label; what stands only in a composite axis with others of known sizes is what they leave."""
    sizes = dict(axes.sizes)
    ends = [(dim, axis) for value, given in zip((*op.operands, *op.results), (*axes.operands, *axes.results), strict=True)
            for dim, axis in zip(value.type.dims, given, strict=True)]
    for dim, axis in ends:
        if len(axis) == 1 and sizes.get(axis[0], 1) == 1:
            sizes[axis[0]] = dim
    for dim, axis in ends:
        missing = [label for label in axis if label not in sizes]
        if len(missing) != 1 or not isinstance(dim, int):
            continue
        for label in axis:
            known = sizes.get(label, 1)
            dim = dim // known if isinstance(known, int) else 0
        if dim:
            sizes[missing[0]] = dim
    return sizes


def _freeze(labels: dict[str, Space], names: Iterator[str] | frozenset[str] | set[str] | tuple[str, ...], reason: str) -> None:
    for name in names:
        if name in labels:
            labels[name].freeze(reason)
