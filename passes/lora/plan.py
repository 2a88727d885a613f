"""Which weights of a module adapters change, and how: names and shapes settled before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ingot.errors import PassError, listed
from ingot.ir.module import Module
from ingot.ir.types import TensorType
from ingot.ir.value import Value
from ingot.ir.weights import FileWeight, Weight, derived
from ingot.passes.lora.adapter import Adapter, LowRank
from ingot.passes.lora.arithmetic import MADE_BY, AddVector, Arithmetic, Decompose, Merge, PutRows, Replace
from ingot.passes.lora.parameters import Parameters, Place


@dataclass(frozen=True, eq=False)
class Edit:
    """One thing that happens to a weight.

    parameter: its name to the adapter. make: the new weight, from the one so far and from the one all changes were trained
    on. below: it is about the latter.
    """

    parameter: str
    make: Callable[[Weight, Weight], Weight]
    below: bool = False


def edited(weight: Weight, edits: Iterable[Edit]) -> Weight:
    """A weight after edits in order."""
    base = weight
    for edit in edits:
        weight = edit.make(weight, base)
        base = weight if edit.below else base
    return weight


class Plan:
    """Edits of the weights of a module, by place."""

    def __init__(self, module: Module) -> None:
        self.parameters = Parameters(module)
        self.edits: dict[Place, list[Edit]] = {}
        self.heads: dict[Value, str] = {}
        """Tied weights of which an adapter calls the output projection by a name of its own: that name."""

    def add(self, adapter: Adapter, factor: float) -> int:
        """Plan an adapter on top of those before, its products times `factor`; returns the number of places it changes.

        Raises PassError, listing the names, when modules are not in the model, have other shapes, or are missing in the
        adapter.
        """
        before = sum(map(len, self.edits.values()))
        found = self._resolve(adapter)
        unknown = [name for name, places in found.items() if places == []]
        if unknown:
            raise self._misfit(adapter, f"{len(unknown)} of the {len(found)} parameters it changes are not in this model: "
                                        f"{listed(unknown)}")
        wrong: list[str] = []
        following = {name for name, places in found.items() if self._follows(adapter, name, places)}
        for name, value in adapter.base.items():
            if name in following:
                continue
            self._attach(found[name], _value(name, value, below=True), value.type, wrong)
        for name, value in adapter.values.items():
            places = [] if name in following else self._of_kind(found[name], True, adapter.config.keeps_ties)
            taken = [p for p in places if any(e.parameter == name and not e.below for e in self.edits.get(p, ()))]
            if taken:
                raise PassError(f"two adapters replace {name}", where=str(adapter.path), hint="merge one of them")
            self._attach(places, _value(name, value), value.type, wrong)
        for module, (value, at) in adapter.rows.items():
            name = f"{module}.weight"
            for place in found[name]:
                shape = place.leaf.type.shape
                if len(shape) != 2 or shape[1] != value.type.shape[1] or max(at) >= shape[0]:
                    wrong.append(f"{name} {list(shape)} (rows of {value.type.shape[1]}, up to row {max(at)})")
            self._attach(found[name], _rows(name, value, at), None, wrong)
        for module, change in adapter.changes.items():
            if f"{module}.weight" not in following:
                self._change(adapter, module, change, factor, found, wrong)
        if wrong:
            raise self._misfit(adapter, f"{len(wrong)} parameters have other shapes in this model: {listed(wrong, most=4)}")
        self._check_missing(adapter)
        return sum(map(len, self.edits.values())) - before

    def edits_of(self, places: Iterable[Place]) -> list[list[Edit]]:
        """The edits of each place."""
        return [self.edits.get(place, []) for place in places]

    # --- names --------------------------------------------------------------------------------------------------------

    def _resolve(self, adapter: Adapter) -> dict[str, list[Place]]:
        """The places of every parameter an adapter names; none for an output projection that follows the embedding."""
        names = [f"{module}.weight" for module in (*adapter.changes, *adapter.rows)]
        names += [f"{module}.bias" for module, change in adapter.changes.items() if change.bias is not None]
        found = {name: self.parameters.find(name) for name in dict.fromkeys([*names, *adapter.values, *adapter.base])}
        lost, tied = [name for name, places in found.items() if not places], self.parameters.tied
        if len(lost) == len(tied) == 1 and lost[0].endswith(".weight"):
            # A model with a tied output projection knows the weight by the name of its embedding alone.
            found[lost[0]] = [p for p in self.parameters.places if p.value is tied[0] and not p.table]
            self.heads[tied[0]] = lost[0]
        return found

    def _of_kind(self, places: list[Place], table: bool, keeps_ties: bool) -> list[Place]:
        """Of a tied weight the embedding's or the output projection's place, or both where they go together."""
        if keeps_ties or len({place.table for place in places}) == 1:
            return places
        return [place for place in places if place.table == table]

    def _follows(self, adapter: Adapter, name: str, places: Sequence[Place]) -> bool:
        """Whether a parameter is an output projection that only repeats what is said of the embedding."""
        return adapter.config.keeps_ties and any(self.heads.get(place.value) == name for place in places)

    def _check_missing(self, adapter: Adapter) -> None:
        known = {name for place, edits in self.edits.items() for name in place.names if edits}
        missing: set[str] = set()
        for place in self.parameters.places:
            modules = [name.removesuffix(".weight") for name in place.names if name.endswith(".weight")]
            if place.leaf.type.rank == 2 and not place.names & known:
                missing.update(module for module in modules if adapter.config.targets(module))
        if missing:
            raise self._misfit(adapter, f"it lacks {len(missing)} modules of this model that it targets: {listed(missing)}")

    # --- edits --------------------------------------------------------------------------------------------------------

    def _attach(self, places: Iterable[Place], edit: Edit, type: TensorType | None, wrong: list[str]) -> None:
        for place in places:
            if type is not None and place.leaf.type.shape != type.shape:
                wrong.append(f"{edit.parameter} {list(place.leaf.type.shape)} (the adapter's {list(type.shape)})")
            self.edits.setdefault(place, []).append(edit)

    def _change(self, adapter: Adapter, module: str, change: LowRank, factor: float, found: dict[str, list[Place]],
                wrong: list[str]) -> None:
        name, (out, into) = f"{module}.weight", change.shape
        places = self._of_kind(found[name], change.table, adapter.config.keeps_ties)
        edits: dict[bool, Edit] = {}
        for place in places:
            shape = place.leaf.type.shape
            flipped = change.table or place.flipped
            if flipped is None:
                flipped = shape != (out, into) if out != into else adapter.config.flipped
            if shape != ((into, out) if flipped else (out, into)):
                wrong.append(f"{name} {list(shape)} (the adapter's {[into, out] if flipped else [out, into]})")
            edit = edits.setdefault(flipped, _change(name, change, change.scaling(factor), flipped))
            self.edits.setdefault(place, []).append(edit)
        if change.bias is not None:
            name = f"{module}.bias"
            self._attach(found[name], _bias(name, change.bias, change.scaling(factor)), change.bias.type, wrong)

    def _misfit(self, adapter: Adapter, message: str) -> PassError:
        base = adapter.config.base_name
        return PassError(f"the adapter does not fit: {message}", where=str(adapter.path),
                         hint=(f"it was trained on {base}; " if base else "") + "merge it into the model it was trained on, "
                              "before passes that reshape or retrain weights")


def _change(name: str, change: LowRank, scale: float, flipped: bool) -> Edit:
    def make(weight: Weight, base: Weight) -> Weight:
        if change.magnitude is None:
            return _made(name, Merge(scale, flipped), weight, change.a, change.b)
        return _made(name, Decompose(scale, flipped), weight, change.a, change.b, change.magnitude, base)

    return Edit(name, make)


def _value(name: str, value: FileWeight, *, below: bool = False) -> Edit:
    return Edit(name, lambda weight, base: value if value.type == weight.type else _made(name, Replace(), weight, value), below)


def _rows(name: str, value: FileWeight, at: tuple[int, ...]) -> Edit:
    return Edit(name, lambda weight, base: _made(name, PutRows(at), weight, value))


def _bias(name: str, value: FileWeight, scale: float) -> Edit:
    return Edit(name, lambda weight, base: _made(name, AddVector(scale), weight, value))


def _made(name: str, fn: Arithmetic, weight: Weight, *given: Weight) -> Weight:
    return derived(MADE_BY, fn, weight, *given, type=weight.type, key=name)
