"""A Hugging Face checkpoint directory: its configuration, and handles on its tensors, with nothing read but headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import CheckpointError, listed
from ingot.ir.files import read_json
from ingot.ir.weights import FileWeight, header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """path: the directory. config: config.json. tensors: key in the safetensors files -> handle (empty without weights)."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, FileWeight]


def read_checkpoint(path: Path, *, weights: bool = True) -> Checkpoint:
    """The checkpoint in a directory; with `weights=False` its configuration alone.

    Raises CheckpointError: no directory or config.json, broken JSON, a missing shard, a truncated file, pickled weights.
    """
    if not path.is_dir():
        raise CheckpointError("no such directory" if not path.exists() else "this is not a directory", where=str(path),
                              hint="give a checkpoint directory (config.json and .safetensors), a .gguf or an .ir file")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise CheckpointError("this is an adapter, which needs the model it was trained for", where=str(path),
                                  hint=f"ingot compile MODEL --adapter {path} -o OUT")
        raise CheckpointError("this is not a checkpoint directory: it has no config.json", where=str(path),
                              hint="give the directory that holds config.json and the .safetensors files")
    return Checkpoint(path, read_json(path / "config.json"), _tensors(path) if weights else {})


def _tensors(path: Path) -> dict[str, FileWeight]:
    if (path / INDEX).is_file():
        return _sharded(path)
    if (path / SINGLE).is_file():
        return _handles(path / SINGLE)
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern))
    if pickled:
        raise CheckpointError(f"the weights are pickled ({pickled[0]}), and unpickling runs code from the file", where=str(path),
                              hint="convert them once, where you trust them: load the model with transformers and call "
                                   "save_pretrained, which writes safetensors")
    raise CheckpointError(f"no weights: neither {SINGLE} nor {INDEX} is there", where=str(path),
                          hint="fetch the weights, or trace without them: weights=False")


def _sharded(path: Path) -> dict[str, FileWeight]:
    places = read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError("the index has no weight_map", where=str(path / INDEX))
    shards = sorted(set(places.values()))
    present = {file.name for file in path.iterdir()}
    missing = [shard for shard in shards if shard not in present]
    if missing:
        raise CheckpointError(f"missing {listed(missing)} of {len(shards)} weight files", where=str(path),
                              hint="fetch the missing files; the index names them")
    found = {shard: _handles(path / shard) for shard in shards}
    lost = [key for key, shard in places.items() if key not in found[shard]]
    if lost:
        raise CheckpointError(f"the index promises {listed(lost)}, which {places[lost[0]]} does not hold",
                              where=str(path / INDEX), hint="index and weight files are of different versions: fetch them again")
    return {key: found[shard][key] for key, shard in places.items()}


def _handles(path: Path) -> dict[str, FileWeight]:
    return {key: FileWeight(path, key, entry.type) for key, entry in header(path).items()}
