"""Taking units out of a func: weights lose positions, and what states sizes follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.ops.conv import Conv
from ingot.ir.ops.creation import Full
from ingot.ir.ops.layout import Expand, Reshape, Slice, Split
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import derived
from ingot.passes.pruning.coupling import Coupling
from ingot.passes.pruning.groups import Group, kept_positions, runs_of
from ingot.passes.pruning.spaces import Space


def cut(func: Func, coupling: Coupling, kept: Mapping[Group, np.ndarray], *, made_by: str) -> dict[Value, Value]:
    """Take out the units that are not `kept` (bool[group.size] by group; as many in every block of a group).

    The ops are built anew, weights become lazy selections of the ones before. made_by: the pass, for their origin. Returns the
    new value for every old one.
    """
    return _Cut(func, coupling, kept, made_by).run()


def stays(coupling: Coupling, const: Const, kept: Mapping[Group, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Which positions of each axis of a weight stay, bool[n] by axis."""
    runs = runs_of(coupling)
    return tuple(np.ones(size, bool) if space is None else kept_positions(space, kept, runs)
                 for size, space in zip(const.type.shape, coupling.of(const), strict=True))


class _Cut:
    def __init__(self, func: Func, coupling: Coupling, kept: Mapping[Group, np.ndarray], made_by: str) -> None:
        self.func = func
        self.coupling = coupling
        self.kept = kept
        self.made_by = made_by
        self.sizes: dict[Space, int] = {group.atom: int(mask.sum()) // group.blocks for group, mask in kept.items()}
        self.runs = runs_of(coupling)

    def run(self) -> dict[Value, Value]:
        changes = {op: self._changes(op) for op in self.func.ops}
        for const in dict.fromkeys(const for group in self.kept for const, _ in group.members):
            self._select(const)
        mapping: dict[Value, Value] = {}
        for op in list(self.func.ops):
            mapping.update(zip(op.results, self.func.insert(self._rebuilt(op, mapping, changes[op])).results, strict=True))
        self.func.set_returns(mapping.get(v, v) for v in self.func.returns)
        self.func.drop_dead()
        return mapping

    def _rebuilt(self, op: Op, mapping: Mapping[Value, Value], changes: dict[str, Any]) -> Op:
        if isinstance(op, Conv):
            channels, per_group = mapping.get(op.x, op.x).type.dims[1], op.w.type.dims[1]
            assert isinstance(channels, int)
            assert isinstance(per_group, int)
            changes = {"groups": channels // per_group}
        return op.clone(mapping, **changes)

    def _changes(self, op: Op) -> dict[str, Any]:
        """Attributes that state sizes, as they are to be; {} where none changes."""
        match op:
            case Reshape() | Expand() | Full():
                new = self._dims(op.result)
                return {} if new == op.result.type.dims else {"shape": new}
            case Split():
                sizes = tuple(self._dims(v)[op.axis] for v in op.results)
                return {} if sizes == op.sizes else {"sizes": sizes}
            case Slice():
                space = self.coupling.of(op.x)[op.axis]
                if space is None or not isinstance(op.start, int) or not isinstance(op.stop, int):
                    return {}
                mask = kept_positions(space, self.kept, self.runs)
                if mask.all():
                    return {}
                return {"start": int(mask[:op.start].sum()), "stop": int(mask[:op.stop].sum())}
        return {}

    def _dims(self, value: Value) -> tuple[Any, ...]:
        return tuple(d if space is None else space.resized(self.sizes)
                     for d, space in zip(value.type.dims, self.coupling.of(value), strict=True))

    def _select(self, const: Const) -> None:
        places = [np.flatnonzero(mask) for mask in stays(self.coupling, const, self.kept)]
        weight = derived(self.made_by, lambda w: w[np.ix_(*places)], const.weight, key=const.name, exact=True,
                         type=TensorType(const.type.dtype, tuple(map(len, places))))
        self.func.module.set_weight(const, weight, resize=True)
