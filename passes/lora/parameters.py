"""Where the parameters of a checkpoint stand in a module: as weights, in parts of joined ones, behind `dequantize`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeGuard, TypeVar

from ingot.ir.module import Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Concat, Slice, Transpose
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import DerivedWeight, Weight, call
from ingot.passes.cleanup.fold_constants import Computed, constant
from ingot.passes.lora.arithmetic import MADE_BY
from ingot.passes.quantization.select_weights import source_names
from ingot.passes.rotation.untie import label

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter of the checkpoint at one place of a module.

    value: what ops compute with: a weight, or the result of a `dequantize` of weights. leaf: the numbers as the checkpoint
    has them, somewhere in the weight's derivation, or rows of what a `dequantize` gives. names: what module and checkpoint
    call it. flipped: whether a linear's leaf lies as [in, out] instead of [out, in]; None where the graph does not tell.
    table: whether rows of it are looked up.
    """

    value: Value
    leaf: Weight
    names: frozenset[str]
    flipped: bool | None
    table: bool


class Names(Generic[T]):
    """Things by dotted names, any number by one."""

    def __init__(self, named: Iterable[tuple[str, T]]) -> None:
        self._by_name: dict[str, list[T]] = defaultdict(list)
        for name, thing in named:
            self._by_name[name].append(thing)
        self._by_end: dict[str, set[str]] = defaultdict(set)
        for name in self._by_name:
            for end in _ends(name):
                self._by_end[end].add(name)

    def find(self, name: str) -> list[T]:
        """What is called so; else what is by the only name that ends in it, or that it ends in.

        Checkpoints of a model without its head leave out the name of the body, which adapters write.
        """
        if name in self._by_name:
            return self._by_name[name]
        near = self._by_end[name] if name in self._by_end else {end for end in _ends(name) if end in self._by_name}
        return self._by_name[next(iter(near))] if len(near) == 1 else []


class Parameters(Names[Place]):
    """All places of a module, by the names of parameters."""

    def __init__(self, module: Module) -> None:
        self.places = [*_plain(module), *_quantised(module)]
        super().__init__((name, place) for place in self.places for name in place.names)

    @property
    def tied(self) -> list[Value]:
        """Values that are a table to some ops and the weight of a product to others."""
        seen: dict[Value, set[bool]] = defaultdict(set)
        for place in self.places:
            seen[place.value].add(place.table)
        return [value for value, kinds in seen.items() if len(kinds) == 2]


def _ends(name: str) -> Iterator[str]:
    """What remains of a dotted name of at least two parts without its first ones."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(1, len(parts) - 1))


def _plain(module: Module) -> Iterator[Place]:
    for const in module.consts.values():
        if not const.type.dtype.is_float or any(isinstance(user, Dequantize) for user in const.users):
            continue
        for table, users in _kinds(const):
            for leaf, flipped in _leaves(const.weight, _direction(const, users)):
                own = {const.name} if leaf is const.weight else set()
                yield Place(const, leaf, frozenset(own | set(source_names(leaf))), flipped, table)


def _quantised(module: Module) -> Iterator[Place]:
    for op in module.ops:
        if not isinstance(op, Dequantize) or not isinstance(op.packed, Const) or op.packed.type.rank != 2:
            continue
        name, parts = label(op.result), rows_of(op.result)
        decoded = constant(op, 0, key=name, made_by=MADE_BY)
        for table, _ in _kinds(op.result):
            for names, start, stop in parts:
                part = decoded if len(parts) == 1 else constant(Slice(Const(name, decoded), 0, start, stop), 0,
                                                                key=min(names, default=name), made_by=MADE_BY)
                yield Place(op.result, part, names, False, table)


def rows_of(value: Value) -> list[tuple[frozenset[str], int, int]]:
    """Which rows of a weight [out, in], quantised or not, are which parameters: names, first row, and the one after the last.

    [] where they were mixed, or it is no weight.
    """
    const = value.op.packed if isinstance(value.op, Dequantize) else value
    if not isinstance(const, Const) or const.type.rank != 2:
        return []
    parts = _rows_of(const.weight)
    if parts is None or len(parts) == 1:
        return [(frozenset({label(value)}).union(*(names for names, _, _ in parts or ())), 0, const.type.shape[0])]
    return parts


def _kinds(value: Value) -> Iterator[tuple[bool, list[object]]]:
    """The users that look rows of a value up, and the others, as far as there are any."""
    tables = [user for user in value.users if isinstance(user, Embedding)]
    others = [user for user in value.users if not isinstance(user, Embedding)]
    if tables:
        yield True, list(tables)
    if others or not tables:
        yield False, list(others)


def _direction(const: Const, users: Iterable[object]) -> bool | None:
    """Whether a weight is [in, out] to its users."""
    found = {False if isinstance(user, Linear | Embedding) and user.w is const else
             True if isinstance(user, MatMul) and user.y is const else None for user in users}
    return found.pop() if len(found) == 1 else None


def _leaves(weight: Weight, flipped: bool | None) -> Iterator[tuple[Weight, bool | None]]:
    """The parameters a weight is made from, each with its direction."""
    if is_made(weight):
        known = flipped is not None and (_turned(weight) or _joined(weight))
        for inner in weight.inputs:
            yield from _leaves(inner, flipped != _turned(weight) if known else None)
    elif _is_parameter(weight):
        yield weight, flipped


def _rows_of(weight: Weight, start: int = 0) -> list[tuple[frozenset[str], int, int]] | None:
    """Parameters in rows from `start` on; [] where they were mixed, None where nothing is known."""
    if isinstance(weight, DerivedWeight) and weight.reads:
        return _rows_of(weight.reads[0], start)
    turned = is_made(weight) and _turned(weight) and _is_parameter(weight.inputs[0])
    if turned or _is_parameter(weight):
        return [(frozenset(source_names(weight)), start, start + weight.type.shape[0])]
    if not is_made(weight):
        return None
    found: list[tuple[frozenset[str], int, int]] = []
    for inner in weight.inputs if _joined(weight) else ():
        part = _rows_of(inner, start)
        if not part:
            return part
        found += part
        start += inner.type.shape[0]
    return found


def is_made(weight: Weight) -> TypeGuard[DerivedWeight]:
    """Whether a pass made a weight from others, which can still be asked for."""
    return isinstance(weight, DerivedWeight) and bool(weight.inputs) and not _is_parameter(weight)


def _is_parameter(weight: Weight) -> bool:
    """Whether a weight was read from a checkpoint (and converted, adapted), as opposed to made by another pass."""
    if not weight.origin.startswith("computed("):
        return True
    adapted = weight.origin.startswith(call("computed", **{"pass": MADE_BY})[:-1])
    return adapted and not (isinstance(weight, DerivedWeight) and _joined(weight))


def _turned(weight: DerivedWeight) -> bool:
    op = weight.fn.op if isinstance(weight.fn, Computed) else None
    return isinstance(op, Transpose) and op.perm == (1, 0)


def _joined(weight: DerivedWeight) -> bool:
    """Whether a matrix is others one below the other."""
    op = weight.fn.op if isinstance(weight.fn, Computed) else None
    return isinstance(op, Concat) and weight.type.rank == 2 and op.axis in (0, -2)


def replaced(weight: Weight, changes: Mapping[Weight, Weight]) -> Weight:
    """A weight with some of its leaves exchanged for others of the same type."""
    if weight in changes:
        return changes[weight]
    if not is_made(weight):
        return weight
    inputs = tuple(replaced(inner, changes) for inner in weight.inputs)
    return weight if inputs == weight.inputs else replace(weight, inputs=inputs)
