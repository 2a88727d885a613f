"""Groups: units (channels, heads) that can be taken out of a func, with every place of every weight that goes with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const
from ingot.passes.pruning.coupling import Coupling
from ingot.passes.pruning.spaces import Space

KINDS = ("mlp", "heads", "kv", "width", "conv", "features")
"""Channels between linears; query heads (with their keys and values where each has its own); key heads with all query heads that
read them; the residual stream; channels of convolutions; features of heads."""


@dataclass(eq=False)
class Group:
    """Units that are taken out alike: unit u is every position of `members` that holds u.

    blocks: as many units must go from each of so many equal runs of units (query heads: one run for each key head). atom: the
    space whose size becomes units / blocks. members: the unit at each position of an axis of a weight, i64[n]; -1 for none.
    """

    kind: str
    size: int
    blocks: int
    atom: Space
    members: dict[tuple[Const, int], np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A weight it is read by, or made by."""
        ends = [const.name for const, axis in self.members if axis == 1] or [const.name for const, _ in self.members]
        return ends[0]

    @property
    def cost(self) -> float:
        """Parameters that go with a unit, as long as nothing else goes."""
        return sum(np.count_nonzero(units >= 0) * math.prod(const.type.shape) / len(units)
                   for (const, _), units in self.members.items()) / self.size

    @property
    def consumers(self) -> list[Linear]:
        """The linears that read the units as their input channels."""
        return list(dict.fromkeys(user for const, axis in self.members if axis == 1 for user in const.users
                                  if isinstance(user, Linear) and user.w is const))


def groups(coupling: Coupling, *, kinds: Iterable[str] = KINDS) -> list[Group]:
    """The groups of some kinds, in graph order. Weights are floats, and every axis may lose positions."""
    free = [atom for atom, reason in coupling.atoms().items() if not reason and atom.size > 1]
    runs = runs_of(coupling)
    consts = [(const, axis, space) for const, spaces in coupling.spaces.items() if isinstance(const, Const)
              for axis, space in enumerate(spaces) if space is not None]
    holders: dict[Space, list[tuple[Const, int, Space]]] = {}
    for place in consts:
        for atom in {atom for atom, _ in place[2].atoms()}:
            holders.setdefault(atom, []).append(place)
    found: list[Group] = []
    for atom in free:
        kind = _kind(coupling, atom, runs)
        if kind not in kinds or any(not const.type.dtype.is_float for const, _, _ in holders[atom]):
            continue
        outer = runs.get(atom)
        group = Group(kind, atom.size * (outer.size if outer else 1), outer.size if outer else 1, atom)
        for const, axis, space in holders[atom]:
            group.members[const, axis] = _units(space, atom, outer)
        found.append(group)
    return found


def _units(space: Space, atom: Space, outer: Space | None) -> np.ndarray:
    inner = space.positions(atom)
    return inner if outer is None else np.where(inner < 0, -1, space.positions(outer) * atom.size + inner)


def runs_of(coupling: Coupling) -> dict[Space, Space]:
    """The atom of key heads for each atom of query heads inside it everywhere: which of these go may differ by key head."""
    shared = coupling.role("shared")
    found: dict[Space, Space] = {}
    for space in coupling.roles["heads"]:
        outer, *inner = (atom for atom, _ in space.atoms())
        if outer in shared and len(inner) == 1 and inner[0] not in shared:
            found[inner[0]] = outer
    for spaces in coupling.spaces.values():
        for held in ({atom for atom, _ in space.atoms()} for space in spaces if space is not None):
            for inner_atom in [a for a in held if a in found]:
                if found[inner_atom] not in held:
                    del found[inner_atom]
    return found


def _kind(coupling: Coupling, atom: Space, runs: Mapping[Space, Space]) -> str:
    if atom in coupling.role("shared"):
        return "kv" if atom in runs.values() else "heads"
    for role, kind in (("heads", "heads"), ("features", "features"), ("width", "width"), ("conv", "conv")):
        if atom in coupling.role(role):
            return kind
    return "mlp"


def kept_positions(space: Space, kept: Mapping[Group, np.ndarray], runs: Mapping[Space, Space]) -> np.ndarray:
    """Which positions of a space stay, bool[size], for the units of groups that do, bool[group.size]."""
    stays = np.ones(space.size, bool)
    held = {atom for atom, _ in space.atoms()}
    for group, mask in kept.items():
        if group.atom in held:
            units = _units(space, group.atom, runs.get(group.atom))
            stays &= (units < 0) | mask[units]
    return stays
