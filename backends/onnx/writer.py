"""Writing a lowered module: model.onnx next to its weights.bin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ingot.backends.onnx.lowering import Lowered, lower
from ingot.backends.onnx.made_at_load import Int8Rows, LookedUp
from ingot.backends.onnx.prefill import PrefillWeights
from ingot.backends.onnx.weights import StoredTensor, WeightFile
from ingot.errors import ArtifactError
from ingot.ir.integer_coding import cached
from ingot.ir.module import Func, Module
from ingot.ir.ops.attention import Attention
from ingot.ir.pattern import NoMatch

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Written:
    """The files written, and where every tensor of the weights file lies.

    prefill: the second graph, if one was asked for and differs. prefill_weights: the plan of its weights file, for
    `ingot.runtime.prefill`. cache_steps: where the steps (f32) of each int8 cache lie, by parameter. decoded: bytes of
    weights that are floats in memory once the graph is loaded, by the format in which they are stored. graph_weights: the
    plan of the graph's own weights file, where it has one.
    """

    model: Path
    weights: Path
    tensors: tuple[StoredTensor, ...]
    prefill: Path | None = None
    prefill_weights: tuple[dict[str, Any], ...] = ()
    cache_steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    decoded: dict[str, int] = field(default_factory=dict)
    graph_weights: tuple[dict[str, Any], ...] = ()


def write(module: Module, directory: Path | str, *, func: Func | None = None, opset_only: bool = False,
          output_names: Sequence[str] | None = None, model_name: str = "model.onnx", weights_name: str = "weights.bin",
          prefill: Module | None = None, prefill_name: str = "model.prefill.onnx", compact: bool = False,
          warn: Callable[[str], None] | None = None, sha256: bool = False, progress: Progress | None = None,
          check: bool = True) -> Written:
    """Lowers a module into `directory` (which exists). Memory stays at a few weights, whatever the model's size.

    opset_only, output_names: see `lower`. prefill: what a second graph, for many rows at a time (see `contrib_int8`), is made
    from: the module, or one like it with float caches; not written where there are no packed weights. compact: weights whose
    form in the graph is larger than the stored one are left to the runtime (see `Written.graph_weights`), else written in
    full. warn: called for each weight that is not finite, by default a Python warning. progress: called with (done, total,
    tensor name). check: run onnx's checker over the result.
    Raises UnsupportedOp for an op without a lowering, ArtifactError when onnx's checker objects.
    """
    lowered = lower(module, func=func, opset_only=opset_only, output_names=output_names)
    target = Path(directory)
    with WeightFile(target / weights_name, warn=warn, sha256=sha256) as weights:
        own = PrefillWeights(weights) if compact and any(isinstance(w, LookedUp) for w in lowered.weights.values()) else None
        model = save(lowered, target / model_name, own or weights, progress=progress)
        plan: tuple[dict[str, Any], ...] = ()
        steps: dict[str, tuple[int, int]] = {}
        # Weights that are decoded to floats would be in memory once more.
        if prefill is not None and not opset_only and not lowered.decoded:
            many = lower(prefill, int8_rows=True, output_names=output_names)
            made = PrefillWeights(weights)
            if any(isinstance(w, Int8Rows) for w in many.weights.values()):
                save(many, target / prefill_name, made)
                plan, steps = made.plan(), _cache_steps(func or module.main, weights)
    if check and own is None:
        check_model(model)
    return Written(model, weights.path, tuple(weights.tensors.values()), target / prefill_name if plan else None, plan, steps,
                   lowered.decoded, own.plan() if own is not None else ())


def _cache_steps(func: Func, weights: WeightFile) -> dict[str, tuple[int, int]]:
    """Stores the steps of int8 caches; where each lies, by the cache's parameter."""
    spans: dict[str, tuple[int, int]] = {}
    for read in (v for op in func.ops if isinstance(op, Attention) for v in (op.k, op.v)):
        try:
            write, _, step = cached(read)
        except NoMatch:
            continue
        if step is not None:
            stored = weights.store(step.name, step.weight)
            spans[write.cache.hint or ""] = (stored.offset, stored.length)
    return spans


def save(lowered: Lowered, path: Path, weights: WeightFile | PrefillWeights, *, progress: Progress | None = None) -> Path:
    """Writes one graph and adds its weights to an open weights file, which several graphs of a module may share."""
    for i, (name, weight) in enumerate(lowered.weights.items()):
        if progress is not None:
            progress(i, len(lowered.weights), name)
        lowered.model.graph.initializer.append(weights.add(name, weight))
    path.write_bytes(lowered.model.SerializeToString())
    return path


def check_model(path: Path) -> None:
    """Raises ArtifactError with the checker's words when a model is not valid ONNX."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"the ONNX checker objects: {str(error).strip().splitlines()[0]}", where=str(path)) from error
