"""GGUF files as Hugging Face directories: converted once by transformers, then kept in a cache."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ingot.errors import CheckpointError
from ingot.frontend.gguf_header import check_header

_SAMPLE = 1 << 20


def converted(path: Path, *, cache: Path | None = None) -> Path:
    """The directory a GGUF file was converted to: config.json, float32 safetensors, tokenizer, generation config, template.

    The first call converts (seconds per hundred million parameters, float32 copy in memory); later ones find the result
    under `cache` by the file's size and contents. Raises CheckpointError for a file transformers does not read.
    """
    check_header(path)
    cache = cache or cache_directory() / "gguf"
    target = cache / f"{path.stem}-{_digest(path)}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache, prefix=f".{path.stem}-"))
    try:
        _convert(path, made)
        made.chmod(0o755)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same result
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def cache_directory() -> Path:
    """Where this platform keeps files that can be made again."""
    home = Path.home()
    base = {"darwin": home / "Library/Caches", "win32": home / "AppData/Local"}.get(sys.platform, home / ".cache")
    return base / "ingot"


def _digest(path: Path) -> str:
    """Of the size and the first and last mebibyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        file.seek(max(size - _SAMPLE, 0))
        tail = file.read()
    return hashlib.sha256(str(size).encode() + head + tail).hexdigest()[:16]


def _convert(path: Path, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ingot.frontend.architecture import first_line, quiet

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent.resolve()), "gguf_file": path.name,
                             "local_files_only": True}
    # transformers asks for accelerate before it reads a GGUF file, and uses it only to place models on several devices
    with (quiet(), patch("transformers.modeling_utils.is_accelerate_available", lambda *args: True),
          patch("transformers.modeling_gguf_pytorch_utils.tqdm", lambda items, **_: items)):
        try:
            config = AutoConfig.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except Exception as error:
            raise CheckpointError(f"transformers does not read this GGUF file: {first_line(error)}", where=str(path)) from error
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, name):  # the weights are plain float32 by now
            delattr(holder, name)
    with quiet():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
