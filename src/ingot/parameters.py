"""Which weights of a module are which parameters of the checkpoint it was imported from, whatever passes did to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ingot.errors import ArtifactError
from ingot.frontend.quantized.coded import CodedWeight
from ingot.ir.module import Module
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import DerivedWeight, FileWeight, Weight
from ingot.passes.cleanup.fold_constants import Computed
from ingot.passes.lora.parameters import rows_of
from ingot.passes.quantization.quantize import output_linears
from ingot.passes.quantization.select_weights import source_names
from ingot.passes.rotation.untie import label

_MADE_BY = re.compile(r'\bpass="([^"]*)"')


@dataclass(frozen=True)
class Original:
    """A parameter as it was imported.

    name: in the module. key: in the checkpoint. weight: its handle; None where the checkpoint has codes. sources: the tensors
    it is made from. linear: whether it is the weight of a linear. tied: whether it is a table of embeddings and the output
    projection at once.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    weight: Weight | None
    sources: tuple[FileWeight, ...]
    linear: bool
    tied: bool


@dataclass(frozen=True)
class Rows:
    """Rows start to stop of what a `dequantize` gives."""

    op: Dequantize
    start: int
    stop: int


@dataclass
class Held:
    """What a module holds of a checkpoint. floats and codes: by the name of the parameter. heads: the same for output
    projections that were tied to a parameter, and are no longer. lost: parameters of which nothing is left in the module.
    """

    floats: dict[str, Weight] = field(default_factory=dict)
    codes: dict[str, Rows] = field(default_factory=dict)
    heads: dict[str, Weight | Rows] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def originals(module: Module) -> dict[str, Original]:
    """The parameters of a module that was just imported, by name."""
    heads = output_linears(module.main)
    found: dict[str, Original] = {}
    for value, weight in _weights(module):
        sources = tuple(_files(weight))
        if not sources:  # a buffer, or a constant of the graph
            continue
        kinds = [type(user) for user in value.users]
        tied = any(user in heads for user in value.users) and Embedding in kinds
        name = label(value)
        key = next(source_names(weight), name)
        whole = isinstance(value, Const) and not isinstance(weight, CodedWeight)
        found[name] = Original(name, key, value.type.shape, weight if whole else None, sources, Linear in kinds, tied)
    return found


def held(module: Module, known: Mapping[str, Original]) -> Held:
    """Where the parameters `known` are now.

    Raises ArtifactError, naming it, for a weight made from parameters that is none itself.
    """
    return _Search(module, known).run()


class _Search:
    def __init__(self, module: Module, known: Mapping[str, Original]) -> None:
        self.module = module
        self.known = known
        self.by_key = {o.key: o.name for o in known.values()} | {name: name for name in known}
        self.by_weight = {id(o.weight): o.name for o in known.values() if o.weight is not None}
        self.found = Held()

    def run(self) -> Held:
        untied = self._untied()
        for value, weight in _weights(self.module):
            if value in untied:
                self.found.heads[untied[value]] = weight if isinstance(value, Const) else self._all(value)
            elif isinstance(value, Const):
                for name, leaf in self._leaves(value.name, weight):
                    self.found.floats[name] = leaf
            else:
                self._coded(value, weight)
        self.found.lost = [name for name in self.known if name not in self.found.floats and name not in self.found.codes]
        return self.found

    def _untied(self) -> dict[Value, str]:
        """Weights of output projections that were tied to a table of embeddings, and are no longer: the name of the table."""
        tied = [o.name for o in self.known.values() if o.tied]
        heads = {op.w for op in output_linears(self.module.main) if isinstance(op, Linear)}
        apart = [w for w in heads if not any(isinstance(user, Embedding) for user in w.users)]
        return {w: tied[0] for w in apart} if len(tied) == 1 else {}

    def _coded(self, value: Value, weight: Weight) -> None:
        name = self.by_key.get(label(value))
        if name is not None:
            self._fits(name, value.type.shape)
            self.found.codes[name] = self._all(value)
            return
        parts = rows_of(value)
        names = [{self.by_key[n] for n in names if n in self.by_key} for names, _, _ in parts]
        if not parts or any(len(some) != 1 for some in names):
            raise _strange(label(value), weight)
        assert isinstance(value.op, Dequantize)
        for (part,), (_, start, stop) in zip(names, parts, strict=True):
            self._fits(part, (stop - start, *value.type.shape[1:]))
            self.found.codes[part] = Rows(value.op, start, stop)

    def _leaves(self, top: str | None, weight: Weight) -> Iterator[tuple[str, Weight]]:
        """The parameters in the derivation of a weight: each as it was, or as a pass left it."""
        if id(weight) in self.by_weight:
            yield self.by_weight[id(weight)], weight
        elif isinstance(weight, DerivedWeight) and isinstance(weight.fn, Computed):
            for inner in weight.inputs:
                yield from self._leaves(None, inner)
        elif isinstance(weight, DerivedWeight | CodedWeight) and any(True for _ in _files(weight)):
            name = self.by_key.get(top or next(source_names(weight), ""))
            if name is None:
                raise _strange(top or weight.origin, weight)
            self._fits(name, weight.type.shape)
            yield name, weight

    def _fits(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ArtifactError unless a parameter has the shape that the architecture gives it."""
        if shape != self.known[name].shape:
            raise ArtifactError(f"a pass made it {list(shape)}, the architecture has {list(self.known[name].shape)}",
                                where=f"@{name}", hint="config.json describes the shapes: leave out what changes them")

    @staticmethod
    def _all(value: Value) -> Rows:
        assert isinstance(value.op, Dequantize)
        return Rows(value.op, 0, value.type.shape[0])


def _weights(module: Module) -> Iterator[tuple[Value, Weight]]:
    """Weights and dequantised weights, each with the handle on its numbers or codes."""
    for const in module.consts.values():
        if not any(isinstance(user, Dequantize) for user in const.users):
            yield const, const.weight
    for op in module.ops:
        if isinstance(op, Dequantize) and isinstance(op.packed, Const):
            yield op.result, op.packed.weight


def _files(weight: Weight) -> Iterator[FileWeight]:
    """The tensors of files that a weight is made from."""
    if isinstance(weight, CodedWeight):
        for part in weight.parts.values():
            yield from _files(part)
    elif isinstance(weight, FileWeight):
        yield weight
    elif isinstance(weight, DerivedWeight):
        for inner in (*weight.inputs, *weight.reads):
            yield from _files(inner)


def _strange(name: str, weight: Weight) -> ArtifactError:
    made = [by for origin in _origins(weight) for by in _MADE_BY.findall(origin)]
    return ArtifactError(f"a weight made by {', '.join(dict.fromkeys(made)) or 'a pass'}, for which the architecture has no "
                         "parameter", where=f"@{name}",
                         hint="leave that pass out, or export before passes that join weights (fuse)")


def _origins(weight: Weight) -> Iterator[str]:
    """Of a weight and those it is made from, the first ones first."""
    if isinstance(weight, DerivedWeight):
        for inner in (*weight.inputs, *weight.reads):
            yield from _origins(inner)
    yield weight.origin
