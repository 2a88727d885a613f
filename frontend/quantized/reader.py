"""The quantised linears of a checkpoint, found by its configuration."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.errors import CheckpointError
from ingot.frontend.checkpoint import Checkpoint
from ingot.frontend.quantized.awq import Awq
from ingot.frontend.quantized.compressed_tensors import CompressedTensors
from ingot.frontend.quantized.fp8 import Fp8
from ingot.frontend.quantized.gptq import Gptq
from ingot.frontend.quantized.layout import Layout, Settings
from ingot.ir.files import read_json
from ingot.ir.weights import FileWeight

LAYOUTS: Mapping[str, type[Layout]] = {layout.name: layout for layout in (Gptq, Awq, CompressedTensors, Fp8)}
"""By the quant_method of config.json."""


def weights_of(checkpoint: Checkpoint) -> Mapping[str, FileWeight]:
    """The weights of a checkpoint by key: its tensors, but those of a quantised linear as one, a CodedWeight called `.weight`.

    Warns where the configuration speaks of quantised weights and there are none. Raises CheckpointError, naming the linear,
    for tensors that do not fit together, and for a method that is not known.
    """
    settings = quantization_settings(checkpoint.path, checkpoint.config)
    return checkpoint.tensors if settings is None else _with_codes(checkpoint.path, settings, checkpoint.tensors)


def quantization_settings(path: Path, config: Mapping[str, Any]) -> Settings | None:
    """How the weights of the checkpoint in a directory are quantised; None where they are floats.

    That stands in config.json or, in older GPTQ checkpoints, in quantize_config.json. Raises CheckpointError.
    """
    found = config.get("quantization_config")
    if found is None and (path / "quantize_config.json").is_file():
        found = {"quant_method": "gptq"} | read_json(path / "quantize_config.json")
    if found is not None and not isinstance(found, dict):
        raise CheckpointError("quantization_config is no JSON object", where=str(path / "config.json"))
    return found


def _with_codes(path: Path, settings: Settings, tensors: Mapping[str, FileWeight]) -> dict[str, FileWeight]:
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in LAYOUTS:
        raise CheckpointError(f"the weights are quantised by {method!r}, which is not supported", where=str(path / "config.json"),
                              hint=f"supported: {', '.join(LAYOUTS)}; or start from the checkpoint it was made from")
    try:
        layout = LAYOUTS[method](settings)
        return _read(path, layout, tensors)
    except CheckpointError as error:
        where = str(path / error.where) if error.where == "config.json" else error.where or str(path)
        raise CheckpointError(error.message, where=where, hint=error.hint) from None


def _read(path: Path, layout: Layout, tensors: Mapping[str, FileWeight]) -> dict[str, FileWeight]:
    linears = sorted(layout.linears(tensors))
    if not linears:
        warnings.warn(f"{path}: config.json says the weights are quantised ({layout.name}), but they are stored as floats: "
                      "read as they are", stacklevel=4)
    parts: dict[str, dict[str, FileWeight]] = defaultdict(dict)
    known, quantised = set(layout.parts), set(linears)
    rest: dict[str, FileWeight] = {}
    for key, tensor in tensors.items():
        linear, _, part = key.rpartition(".")
        if linear in quantised and part in known:
            parts[linear][part] = tensor
        else:
            rest[key] = tensor
    return rest | {f"{linear}.weight": layout.read(linear, parts[linear]) for linear in linears}
