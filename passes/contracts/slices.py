"""Parts of a func as modules of their own, cut off at chosen values, which become parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

from ingot.ir.dims import Dim, evaluate, symbols
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Take
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.text.printer import attribute
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import DerivedWeight, Weight
from ingot.passes.cleanup.cse import weight_key

TABLE = 4096
"""Elements up to which a weight may belong to what only describes positions: inverse frequencies, say."""
ROLES = ("ids", "pos", "take", "mask")
"""Parameters that are known by name."""
TYPICAL = 4
"""What a symbolic dim counts for where work is estimated."""


def extract(module: Module, outputs: Sequence[Value], ops: Collection[Op], names: Mapping[Value, str]) -> Module:
    """A module that computes `outputs` by `ops` of the main func; other values they read become parameters.

    names: of parameters, where they are not to be called as in the module; values of one name are one parameter. Weight
    handles are shared, dims and facts kept; an output that may reuse a parameter's memory still may.
    """
    func = module.main
    part = Module(module.name)
    part.dims, part.meta = dict(module.dims), dict(module.meta)
    its = part.add_func(func.name)
    inside = set(ops)
    chosen = [op for op in func.ops if op in inside]
    made = {r for op in chosen for r in op.results}
    mapping: dict[Value, Value] = {}
    params: dict[str, Value] = {}
    for value in [v for op in chosen for v in op.operands] + list(outputs):
        if value in made or value in mapping:
            continue
        if isinstance(value, Const):
            mapping[value] = part.add_const(value.name, value.weight)
        else:
            name = names.get(value, value.hint or "v")
            if name not in params:
                params[name] = its.add_param(name, value.type)
            mapping[value] = params[name]
    for op in chosen:
        mapping.update(zip(op.results, its.insert(op.clone(mapping)).results))
    its.set_returns(mapping[v] for v in outputs)
    held = {v: mapping[func.reuse[i]] for i, v in enumerate(func.returns) if i in func.reuse and func.reuse[i] in mapping}
    its.reuse = {i: held[v] for i, v in enumerate(outputs) if v in held}
    return part


def positional(module: Module) -> set[Value]:
    """Values of the main func that say where things stand, not what they are: integers and flags, and floats made from
    these and from small tables alone (masks, angles). They are never replaced by random numbers."""
    found = {p for p in module.main.params if not p.type.dtype.is_float}
    for op in module.main.ops:
        plain = not isinstance(op, Embedding | Take | Linear | MatMul) and all(
            v in found or (isinstance(v, Const) and math.prod(v.type.shape) <= TABLE) for v in op.operands)
        found.update(r for r in op.results if plain or not r.type.dtype.is_float)
    return found


def work(op: Op) -> int:
    """About how many numbers an op touches and multiplications it does on small inputs."""
    elements = sum(_count(v.type) for v in (*op.operands, *op.results))
    if isinstance(op, Linear | MatMul):
        return elements + _count(op.result.type) * _size(op.x.type.dims[-1])
    if isinstance(op, Attention):
        return elements + 2 * _count(op.q.type) * _size(op.k.type.dims[2])
    return elements


def shape_of(*modules: Module) -> Hashable:
    """Equal for modules that are built alike: the same ops, types, single numbers, and parameters in common.

    Other weights count by type, by what they are called but for numbers, and by which of them come from the same tensors:
    layers of one model are alike, a layer that reads another's weights is not.
    """
    shared: dict[Hashable, int] = {}
    return tuple(tuple(_lines(module, shared)) for module in modules)


def _lines(module: Module, shared: dict[Hashable, int]) -> Iterator[Hashable]:
    """shared: numbers of parameters by name, and of the tensors that weights come from, over several modules."""
    numbers: dict[Value, int] = {}

    def number(value: Value) -> int:
        return numbers.setdefault(value, len(numbers))

    for param in module.main.params:
        role = param.hint if param.hint in ROLES else shared.setdefault(param.hint, len(shared))
        yield role, str(param.type), number(param), param in module.main.reuse.values()
    for const in module.consts.values():
        leaves = tuple(shared.setdefault(leaf, len(shared)) for leaf in _leaves(const.weight))
        value = weight_key(const) if not const.type.rank else None
        yield number(const), str(const.type), leaves, value, re.sub(r"\d+", "#", const.weight.origin)
    for op in module.main.ops:
        yield (op.name, op.map_operands(number), tuple(attribute(a) for a in op.attrs.values()), tuple(map(number, op.results)),
               str([r.type for r in op.results]))
    yield tuple(map(number, module.main.returns))


def _leaves(weight: Weight) -> Iterator[Hashable]:
    """The tensors a weight is computed from."""
    if isinstance(weight, DerivedWeight) and weight.inputs:
        for inner in weight.inputs:
            yield from _leaves(inner)
    else:
        yield weight


def _count(type: TensorType) -> int:
    return math.prod(map(_size, type.dims))


def _size(dim: Dim) -> int:
    return evaluate(dim, dict.fromkeys(symbols(dim), TYPICAL))
