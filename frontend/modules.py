"""Any nn.Module as a module of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ingot.errors import IngotError
from ingot.frontend.dimensions import Sizes
from ingot.frontend.importer import WeightOf, import_program, symbol_names
from ingot.frontend.tensors import held
from ingot.frontend.trace import trace
from ingot.ir.module import Module
from ingot.ir.verify import verify

DEFAULT_RANGE = (1, 64)


def import_module(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor] | torch.Tensor, *,
                  dims: Mapping[str, tuple[str | int | None, ...]] | None = None,
                  ranges: Mapping[str, tuple[int, int]] | None = None, name: str = "model", outputs: Sequence[str] = (),
                  weight_of: WeightOf = held, prefix: str = "") -> Module:
    """The graph of `model(**inputs)` in eval mode; the model is left as it was.

    inputs: example tensors by parameter name of `forward`, or in its order. dims: per input one entry per axis, the name
    of a dim that may change or None (`{"ids": ("B", "S")}`); what is not named is fixed. ranges: name -> (least, greatest)
    value, (1, 64) when not given; the module's may be narrower. outputs: names of the results. weight_of: handles for
    parameters and buffers, by name without `prefix`. Tied parameters become one weight. Raises UnsupportedOp, IngotError.
    """
    inputs = _named(model, inputs)
    dims = dims or {}
    unknown = sorted(set(dims) - set(inputs))
    if unknown:
        raise IngotError(f"dims are given for {', '.join(unknown)}, the inputs are {', '.join(inputs)}")
    for key, labels in dims.items():
        if len(labels) != inputs[key].ndim:
            raise IngotError(f"dims of {key} name {len(labels)} axes, the example has {inputs[key].ndim}")
    used = {label for labels in dims.values() for label in labels if isinstance(label, str)}
    ranges = {label: (ranges or {}).get(label, DEFAULT_RANGE) for label in sorted(used)}
    tied = first_names(model)
    with _evaluating(model):
        program, ranges = trace(model, inputs, dims=dims, ranges=ranges)
    module = import_program(program, name=name, sizes=Sizes(symbol_names(program, dims), ranges), weight_of=weight_of,
                            tied=tied, prefix=prefix, outputs=tuple(outputs))
    for label, (least, greatest) in ranges.items():
        module.set_dim(label, least, greatest)
    verify(module)
    return module


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every part of the model in eval mode, then each as it was."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _named(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor] | torch.Tensor,
           ) -> dict[str, torch.Tensor]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    values = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    names = [p.name for p in inspect.signature(model.forward).parameters.values()
             if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(values) > len(names):
        raise IngotError(f"{len(values)} inputs are given, {type(model).__name__}.forward takes {len(names)}",
                         hint="give example inputs by name")
    return dict(zip(names, values))


def first_names(model: torch.nn.Module) -> dict[str, str]:
    """Every parameter and buffer name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    return names
