"""Writing a lowered module: model.onnx next to its weights.bin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from ingot.backends.onnx.contrib_int8 import MadeAtLoad
from ingot.backends.onnx.dtypes import onnx_dtype
from ingot.backends.onnx.lowering import Lowered, lower
from ingot.backends.onnx.weights import StoredTensor, WeightFile
from ingot.errors import ArtifactError
from ingot.ir.module import Func, Module
from ingot.ir.weights import Weight

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Written:
    """The files written, and where every tensor of the weights file lies.

    prefill: the second graph, if one was asked for and differs. made_at_load: what the runtime must make for it, as
    `ingot.runtime.prefill.MadeAtLoad` reads it.
    """

    model: Path
    weights: Path
    tensors: tuple[StoredTensor, ...]
    prefill: Path | None = None
    made_at_load: tuple[dict[str, Any], ...] = ()


def write(module: Module, directory: Path | str, *, func: Func | None = None, opset_only: bool = False,
          output_names: Sequence[str] | None = None, model_name: str = "model.onnx", weights_name: str = "weights.bin",
          prefill_name: str | None = None, warn: Callable[[str], None] | None = None, sha256: bool = False,
          progress: Progress | None = None, check: bool = True) -> Written:
    """Lowers a module into `directory` (which exists). Memory stays at a few weights, whatever the model's size.

    opset_only, output_names: see `lower`. prefill_name: also write a graph for many rows at a time (see `contrib_int8`), where
    the module has packed weights. warn: called for each weight that is not finite, by default a Python warning.
    progress: called with (done, total, tensor name). check: run onnx's checker over the result.
    Raises UnsupportedOp for an op without a lowering, ArtifactError when onnx's checker objects.
    """
    lowered = lower(module, func=func, opset_only=opset_only, output_names=output_names)
    target = Path(directory)
    with WeightFile(target / weights_name, warn=warn, sha256=sha256) as weights:
        model = save(lowered, target / model_name, weights, progress=progress)
        made: tuple[dict[str, Any], ...] = ()
        if prefill_name is not None and not opset_only:
            many = lower(module, func=func, int8_rows=True, output_names=output_names)
            made = tuple(_spans(w, weights) for w in many.weights.values() if isinstance(w, MadeAtLoad) and w.type.rank == 2)
            if made:
                save(many, target / prefill_name, weights)
    if check:
        check_model(model)
    prefill = target / prefill_name if prefill_name is not None and made else None
    return Written(model, weights.path, tuple(weights.tensors.values()), prefill, made)


def _spans(weight: MadeAtLoad, weights: WeightFile) -> dict[str, Any]:
    """A recipe with the names of stored tensors replaced by where they lie."""
    recipe = asdict(weight.recipe)
    for key in ("packed", "group_scale", "zero"):
        if recipe[key] is not None:
            stored = weights.tensors[recipe[key]]
            recipe[key] = [stored.offset, stored.length]
    return recipe


def save(lowered: Lowered, path: Path, weights: WeightFile, *, progress: Progress | None = None) -> Path:
    """Writes one graph and adds its weights to an open weights file, which several graphs of a module may share."""
    for i, (name, weight) in enumerate(lowered.weights.items()):
        if progress is not None:
            progress(i, len(lowered.weights), name)
        made = isinstance(weight, MadeAtLoad)
        lowered.model.graph.initializer.append(_placeholder(name, weight) if made else weights.add(name, weight))
    path.write_bytes(lowered.model.SerializeToString())
    return path


def _placeholder(name: str, weight: Weight) -> TensorProto:
    """An external initializer without a file: loading the graph needs it from `SessionOptions.add_external_initializers`."""
    proto = TensorProto(name=name, data_type=onnx_dtype(weight.type.dtype), dims=weight.type.shape,
                        data_location=TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value="made-at-load")
    proto.external_data.add(key="length", value=str(weight.nbytes))
    return proto


def check_model(path: Path) -> None:
    """Raises ArtifactError with the checker's words when a model is not valid ONNX."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"the ONNX checker objects: {str(error).strip().splitlines()[0]}", where=str(path)) from error
