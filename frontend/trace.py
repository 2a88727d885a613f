"""torch.export with named dims and the decompositions the import rules expect."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram, default_decompositions, export

from ingot.errors import IngotError, UnsupportedOp
from ingot.frontend.importer import known

KEPT = ("scaled_dot_product_attention.default", "linear.default", "layer_norm.default", "rms_norm.default", "silu.default",
        "softmax.int", "log_softmax.int", "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding",
        "conv2d.padding", "matmul.default", "group_norm.default", "repeat_interleave.Tensor", "gelu.default",
        "leaky_relu.default", "elu.default", "hardswish.default", "hardsigmoid.default", "max_pool2d.default",
        "adaptive_avg_pool2d.default", "mish.default")
"""Ops that stay whole instead of being decomposed: the graph has them as single ops."""


def trace(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *, dims: Mapping[str, tuple[str | int | None, ...]],
          ranges: Mapping[str, tuple[int, int]]) -> tuple[ExportedProgram, dict[str, tuple[int, int]]]:
    """The program of `model(**inputs)`, and the ranges of dims it holds for.

    dims: per input, a name for every axis that may change (the same name means the same size), None for a fixed one.
    ranges: name -> (least, greatest); where the model treats an end of a range apart, that end is left out.
    torch's decompositions run only when the traced ops are not all importable as they are: they take four times as long
    as tracing. Raises UnsupportedOp, with torch's reason, for a model that cannot be traced.
    """
    with _quiet(), torch.no_grad():
        try:
            program, ranges = _attempts(model, inputs, dims, ranges)
            return program if _importable(program) else program.run_decompositions(_table()), ranges
        except IngotError:
            raise
        except Exception as error:
            raise UnsupportedOp(f"torch.export cannot trace {type(model).__name__}: {_first(error)}", where=_where(error),
                                hint="branches on tensor values and sizes are what usually stops it") from error


def _attempts(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], dims: Mapping[str, tuple[str | int | None, ...]],
              ranges: Mapping[str, tuple[int, int]]) -> tuple[ExportedProgram, dict[str, tuple[int, int]]]:
    """As it is; else without the ends of ranges that torch's guards exclude; else never taking a size for the one that
    broadcasts, which lets go of guards like `size - 1 != 1` (a slice of a sequence)."""
    try:
        return _export(model, inputs, dims, ranges), dict(ranges)
    except UserError as error:
        narrowed = _narrowed(str(error), ranges)
        if narrowed != ranges:
            return _export(model, inputs, dims, narrowed), narrowed
        settings: Any = torch.fx.experimental._config
        with settings.patch(backed_size_oblivious=True):
            try:
                return _export(model, inputs, dims, ranges), dict(ranges)
            except UserError:
                raise error from None


def _export(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], dims: Mapping[str, tuple[str | int | None, ...]],
            ranges: Mapping[str, tuple[int, int]]) -> ExportedProgram:
    named = {name: Dim(name, min=least, max=greatest) for name, (least, greatest) in ranges.items()}
    shapes = {name: {axis: named[label] for axis, label in enumerate(dims.get(name, ())) if isinstance(label, str)} or None
              for name in inputs}
    # torch refuses examples that are views of one another
    return export(model, (), kwargs={k: v.clone() for k, v in inputs.items()}, dynamic_shapes=shapes, strict=False)


_GUARD = re.compile(r"Not all values of (\w+) = (\S+) in the specified range .*? satisfy the generated guard (.+?)\.?$",
                    re.MULTILINE)


def _narrowed(message: str, ranges: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The ranges without the ends that torch's guards exclude (`size != 64`, `2 <= size`)."""
    out = dict(ranges)
    for name, size, guard in ((n, size, g) for n, size, guards in _GUARD.findall(message) for g in guards.split(" and ")):
        if name not in out:
            continue
        least, greatest = out[name]
        if guard == f"{size} != {greatest}":
            out[name] = (least, greatest - 1)
        elif guard in (f"{size} != {least}", f"{least} < {size}"):
            out[name] = (least + 1, greatest)
        elif (bound := re.fullmatch(rf"(\d+) <= {re.escape(size)}", guard)) is not None:
            out[name] = (int(bound[1]), greatest)
        elif (bound := re.fullmatch(rf"{re.escape(size)} <= (\d+)", guard)) is not None:
            out[name] = (least, int(bound[1]))
    return out


def _importable(program: ExportedProgram) -> bool:
    """Whether every traced op has a rule and none writes into a tensor."""
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or not known(node) or (schema is not None and schema.is_mutable):
            return False
    return True


def _table() -> dict[torch._ops.OperatorBase, Callable[..., object]]:
    table = default_decompositions()
    for name in KEPT:
        packet, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)  # type: ignore[no-untyped-call]
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's own deprecation warnings and logging are not about the user's model; what goes wrong is raised."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"


def _where(error: Exception) -> str | None:
    trace, found = error.__traceback__, None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "/torch/" not in path and not path.startswith(("<", str(Path(__file__).parent))):
            found = f"{Path(path).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
