"""lora-inputs: low-rank adapters beside the linears, chosen for every row when the model runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ingot.errors import PassError, listed
from ingot.ir.dims import Dim
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.layout import Take
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.pointwise import Add
from ingot.ir.types import TensorType, i64
from ingot.ir.value import Value
from ingot.ir.weights import Weight, derived
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.lora.adapter import Adapter, LowRank, check_paths, read_adapter
from ingot.passes.lora.parameters import Names, rows_of
from ingot.passes.lora.plan import Plan
from ingot.passes.rotation.untie import label

PASS = "lora-inputs"
PARAM = "adapter"
"""The parameter that chooses, i64[batch]."""


@dataclass(frozen=True)
class LoraInputs(Pass):
    """Keeps adapters apart from the weights, for requests that want different ones: a parameter %adapter i64[batch] says for
    each row which it is, 0 for none.

    Behind every linear that some adapter changes, x @ a[adapter] @ b[adapter] is added (Punica, Chen et al., arXiv 2310.18547,
    section 3). The base weights stay as they are, quantised or not. Adapters of linears alone can be kept apart: LoRA and
    rsLoRA, no embeddings, biases or modules saved as a whole. Goes behind the passes that join linears.
    """

    name = PASS
    contract: ClassVar[Contract] = "edit"
    wanted = True
    establishes = ("adapters",)
    not_after = {"adapters": "it has adapters to choose from already"}  # noqa: RUF012

    adapters: tuple[str, ...] = option(doc="adapter directories, joined by +; the first is number 1, called as its directory")

    def __post_init__(self) -> None:
        check_paths(self.adapters)
        names = [Path(path).name for path in self.adapters]
        if len(set(names)) < len(names):
            raise PassError(f"two adapters are called {next(n for n in names if names.count(n) > 1)}",
                            hint="requests choose them by the names of their directories: give them different ones")

    def look(self) -> None:
        for path in self.adapters:
            _read(path)

    def run(self, module: Module, ctx: Context) -> int:
        parts: dict[Linear, list[Part]] = defaultdict(list)
        plan = Plan(module)
        linears = Names((name, (op, start)) for op in module.main.ops if isinstance(op, Linear)
                        for known, start, _ in rows_of(op.w) for name in known)
        for number, path in enumerate(self.adapters, 1):
            adapter = _read(path)
            adapter.check_finite()
            plan.add(adapter, 1.0)
            for target, change in adapter.changes.items():
                spots = linears.find(f"{target}.weight") or [(op, 0) for op in module.main.ops if isinstance(op, Linear)
                                                             and plan.heads.get(op.w) == f"{target}.weight"]
                if not spots:
                    raise PassError(f"{target} is no linear of this graph", where=path, hint="run recognize before lora-inputs")
                for op, start in spots:
                    parts[op].append(Part(number, start, change))
        index = _parameter(module.main)
        for done, (op, found) in enumerate(parts.items()):
            ctx.step(done, len(parts), label(op.w))
            _add_path(module.main, op, index, found, len(self.adapters))
        module.meta["adapters"] = " ".join(Path(path).name for path in self.adapters)
        ctx.details.update(adapters=list(self.adapters), linears=len(parts))
        return len(parts)


@dataclass(frozen=True)
class Part:
    """The product of one adapter for one of the parameters that a linear's weight holds. start: its first output."""

    adapter: int
    start: int
    change: LowRank


def _read(path: str) -> Adapter:
    """An adapter of linears alone."""
    adapter = read_adapter(Path(path))
    whole = [*adapter.values, *adapter.base, *adapter.rows]
    odd = [module for module, change in adapter.changes.items()
           if change.table or change.magnitude is not None or change.bias is not None]
    if whole or odd:
        raise PassError(f"it cannot stay apart from the weights: {listed([*whole, *odd])} are no plain products of linears",
                        where=path, hint="merge it instead: merge-lora")
    return adapter


def _parameter(func: Func) -> Value:
    """The new parameter, one number for every row of the batch."""
    ids = next((p for p in func.params if p.hint == "ids"), func.params[0] if func.params else None)
    if ids is None or not ids.type.rank:
        raise PassError("there is no batch whose rows could have different adapters")
    return func.add_param(PARAM, TensorType(i64, ids.type.dims[:1]))


def _add_path(func: Func, op: Linear, index: Value, parts: Sequence[Part], adapters: int) -> None:
    """Adds x @ a[index] @ b[index] to a linear y = x @ w.T. a: [adapters + 1, in, rank]; b: [adapters + 1, rank, out]."""
    batch: Dim = index.type.dims[0]
    if op.x.type.rank != 3 or op.x.type.dims[0] != batch:
        raise PassError(f"{op.x!r} is not [batch, sequence, features]", where=op.loc, op=op,
                        hint="run recognize before lora-inputs")
    into, out = op.w.type.with_dims(*reversed(op.w.type.dims)).shape
    stack = Stack(adapters, into, out, tuple(parts))
    name, kind = label(op.w), op.result.type.dtype
    factors: tuple[Weight, ...] = tuple(w for part in parts for w in (part.change.a, part.change.b))
    b = Builder(func, before=next(iter(func.ops[func.ops.index(op) + 1:]), None), loc=op.loc)
    value = op.x
    for side, shape in (("a", (adapters + 1, into, stack.rank)), ("b", (adapters + 1, stack.rank, out))):
        weight = derived(PASS, Side(stack, side, kind.numpy), *factors, type=TensorType(kind, shape), key=f"{name}.lora_{side}")
        value = b(MatMul(value, b(Take(b.const(f"{name}.lora_{side}", weight), index, 0))), f"lora_{side}")
    func.replace(op.result, b(Add(op.result, value), op.result.hint))


@dataclass(frozen=True)
class Stack:
    """How the factors of several adapters lie in two tensors, those of one adapter side by side along the rank.

    Number 0 is zeros throughout. Factors of less rank than others, and outputs that an adapter leaves alone, meet zeros.
    """

    adapters: int
    into: int
    out: int
    parts: tuple[Part, ...]

    @property
    def rank(self) -> int:
        """The greatest sum of ranks of an adapter."""
        return max(sum(part.change.rank for part in self.parts if part.adapter == n) for n in range(self.adapters + 1))

    def slots(self) -> Iterator[tuple[Part, int]]:
        """Every part with its first place along the rank."""
        taken: Counter[int] = Counter()
        for part in self.parts:
            yield part, taken[part.adapter]
            taken[part.adapter] += part.change.rank


@dataclass(frozen=True)
class Side:
    """One of the two tensors, from the a and b of every part: "a" [adapters + 1, in, rank], or "b" [..., rank, out], scaled."""

    stack: Stack
    side: str
    dtype: np.dtype[Any]

    def __call__(self, *factors: np.ndarray) -> np.ndarray:
        stack = self.stack
        shape = (stack.into, stack.rank) if self.side == "a" else (stack.rank, stack.out)
        found = np.zeros((stack.adapters + 1, *shape), np.float32)
        for (part, slot), a, b in zip(stack.slots(), factors[::2], factors[1::2], strict=True):
            places = slice(slot, slot + part.change.rank)
            if self.side == "a":
                found[part.adapter, :, places] = a.T
            else:
                scaled = b.astype(np.float32).T * np.float32(part.change.scaling())
                found[part.adapter, places, part.start:part.start + part.change.shape[0]] = scaled
        return found.astype(self.dtype, copy=False)
