"""The tensors of a module that learn, and the form in which they go back into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.copy import copied
from ingot.ir.formats import Scales, format_named, steps
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.conv import Conv
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.ir.weights import UnknownWeight, call
from ingot.passes.quantization import rtn
from ingot.passes.quantization.quantize import output_linears
from ingot.passes.quantization.sequential import held
from ingot.passes.rotation.untie import label
from ingot.passes.stored import stored

if TYPE_CHECKING:
    import torch

WEIGHTED = (Linear, Conv, RmsNorm, LayerNorm, SkipRmsNorm, SkipLayerNorm, GroupNorm, BatchNorm)
"""Ops whose `w` and `bias` learn."""


class Student:
    """A module whose weights and biases are tensors that learn.

    module: a copy to run, in which quantised weights that learn stand as plain ones; `weights` are the tensors for them.
    leaves: what is optimised, f32 by name.
    """

    def __init__(self, module: Module, teacher: Module, *, rank: int, head: bool, directions: Mapping[str, torch.Tensor]) -> None:
        """rank: of what is added to matrices, 0 for all of them, directions: where this begins (see `principal_inputs`), by
        weight. head: the token embedding and the output projection learn too.

        The teacher's weights are where quantised ones begin, as near to them as gives the same codes.
        """
        self.module, twins = copied(module)
        back = {new: old for old, new in twins.items()}
        self.parts: list[Part] = []
        for value in list(learning(self.module.main, head=head)):
            original = back[value]
            same = teacher.consts.get(label(value))
            goal = same if same is not None and same.type.dims == value.type.dims and same.type.dtype.is_float else None
            if isinstance(value, Const):
                assert isinstance(original, Const)
                self.parts.append(Part(value, original, rank, directions))
            else:
                assert isinstance(original.op, Dequantize)
                plain = self.module.add_const(label(value), UnknownWeight(value.type, call("computed", **{"pass": "heal"})))
                self.module.main.replace(value, plain)
                self.parts.append(CodedPart(plain, original.op, goal, rank, directions))
        self.module.main.drop_dead()

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        return {f"{part.name}.{name}": leaf for part in self.parts for name, leaf in part.leaves.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that the leaves make, by name in `module`."""
        return {part.name: part.value() for part in self.parts}

    def write(self, module: Module, *, made_by: str) -> None:
        """Give the module that this is a copy of the weights that were learned, in the forms that its own have."""
        import torch

        with torch.no_grad():
            for part in self.parts:
                part.write(module, made_by=made_by)


def learning(func: Func, *, head: bool) -> Iterator[Value]:
    """The weights and biases of a func that learn: weights, or results of `dequantize` of weights, each once."""
    heads: set[Op] = set() if head else output_linears(func)
    kinds = (*WEIGHTED, Embedding) if head else WEIGHTED
    seen: set[str] = set()
    for op in func.ops:
        if not isinstance(op, kinds) or op in heads:
            continue
        for field, value in op.operand_fields:
            if field not in ("w", "bias") or not isinstance(value, Value) or not value.type.dtype.is_float:
                continue
            looked_up = any(isinstance(user, Embedding) or user in heads for user in value.users)
            if _known(value) and label(value) not in seen and (head or not looked_up):
                seen.add(label(value))
                yield value


def _known(value: Value) -> bool:
    if isinstance(value, Const):
        return value.type.dtype.bits > 8
    return isinstance(value.op, Dequantize) and value.type.rank == 2 and all(
        isinstance(v, Const) and len(v.users) == 1 for _, v in value.op.operand_fields if v is not None)


class Part:
    """One float weight that learns: whole, or what is added to it as a product b @ a of rank r.

    Elements of a matrix that are zero stay zero, so that a sparse weight keeps its pattern.
    """

    mask: torch.Tensor | None

    def __init__(self, const: Const, original: Const, rank: int, directions: Mapping[str, torch.Tensor]) -> None:
        import torch

        self.original = original
        self._begin(const.name, torch.from_numpy(original.weight.materialize().astype(np.float32)), rank, directions)
        zeros = self.start == 0
        if self.start.dim() > 1 and zeros.any():
            self.mask = ~zeros

    def _begin(self, name: str, start: torch.Tensor, rank: int, directions: Mapping[str, torch.Tensor]) -> None:
        import torch

        self.name, self.start = name, start
        self.mask = None
        self.leaves: dict[str, torch.Tensor] = {}
        if name not in directions or not 0 < rank < min(start.shape):
            self.leaves["w"] = start.clone().requires_grad_()
            return
        a = directions[name].clone()
        self.leaves |= {"a": a.requires_grad_(), "b": torch.zeros(len(start), len(a), requires_grad=True)}

    def plain(self) -> torch.Tensor:
        """The weight before it is rounded."""
        import torch

        w = self.leaves["w"] if "w" in self.leaves else torch.addmm(self.start, self.leaves["b"], self.leaves["a"])
        return w if self.mask is None else w * self.mask

    def value(self) -> torch.Tensor:
        """The weight, f32, differentiable with respect to the leaves."""
        return self.plain()

    def write(self, module: Module, *, made_by: str) -> None:
        array = self.plain().numpy().astype(self.original.type.dtype.numpy)
        module.set_weight(self.original, stored(self.name, array, made_by))


class CodedPart(Part):
    """One quantised weight that learns through its rounding; with its steps, where these are plain floats.

    goal: the weight it once was. The float behind the codes begins as near to it as rounds to them: what was rounded far is then
    at the border of its cell, and the first to move to another.
    """

    def __init__(self, const: Const, op: Dequantize, goal: Const | None, rank: int,
                 directions: Mapping[str, torch.Tensor]) -> None:
        import torch

        from ingot.backends.torch.straight_through import Rounding

        self.op = op
        self.format = format_named(op.format)
        parts = {name: v.weight.materialize() for name, v in op.operand_fields if isinstance(v, Const)}
        step = steps(parts["scale"], parts.get("tensor_scale"), parts.get("offset")).astype(np.float32)
        self.zero = parts.get("zero")
        offset = None if self.zero is None else torch.from_numpy(self.zero.astype(np.float32))
        coded = torch.from_numpy(op.reference(*(parts.get(name) for name, _ in op.operand_fields)).astype(np.float32))
        self.rounding = Rounding(self.format, op.group, offset)
        self.step = torch.from_numpy(step)
        if goal is not None:
            aim = torch.from_numpy(goal.weight.materialize().astype(np.float32))
            coded = self.rounding.within(aim, coded, self.step)
        self._begin(const.name, coded, rank, directions)
        if set(parts) <= {"packed", "scale", "zero"} and op.scale.type.dtype.is_float and op.scale.type.dtype.bits > 8:
            self.leaves["step"] = torch.zeros_like(self.step, requires_grad=True)

    def steps(self) -> torch.Tensor:
        """The steps f32[rows, groups]: the first ones times what is learned, which moves at the pace of weights."""
        return self.step * (1 + self.leaves["step"]) if "step" in self.leaves else self.step

    def value(self) -> torch.Tensor:
        return self.rounding(self.plain(), self.steps())

    def write(self, module: Module, *, made_by: str) -> None:
        dtype = self.op.scale.type.dtype.numpy
        consts = {name: v for name, v in self.op.operand_fields if isinstance(v, Const)}
        step = self.steps().numpy().astype(dtype).astype(np.float32)
        made = {"scale": step.astype(dtype)} if "step" in self.leaves else {}
        scales = Scales(step if made else self.step.numpy(), self.zero, {})
        made["packed"] = rtn.encoded(self.plain().numpy(), self.format, scales, group=self.op.group).codes
        plain = Const(self.name, UnknownWeight(self.op.result.type, ""))
        for name, weight in held(plain, made, self.format, made_by=made_by).items():
            module.set_weight(consts[name], weight)
