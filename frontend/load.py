"""One entry point for everything that can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingot.errors import CheckpointError, IngotError
from ingot.importing import import_user_module
from ingot.ir.module import Module
from ingot.ir.text import parse_module


def load(model: str | Path, *, dtype: str | None = None, weights: bool = True, cache: Path | None = None) -> Module:
    """The module of a checkpoint directory, a `.gguf` file, an `.ir` file, or `package.module:callable`.

    dtype: element type of the computation (f32, bf16, f16, f64; None is f32); a callable's model and an `.ir` file keep
    theirs. weights: False traces a checkpoint's architecture without its weights. cache: where converted GGUF files are
    kept (the platform's cache directory). The callable takes nothing and returns (nn.Module, example inputs) or
    (nn.Module, example inputs, keyword arguments of import_module).
    Raises CheckpointError, ParseError, UnsupportedOp, IngotError.
    """
    text = str(model)
    path = Path(text).expanduser()
    if path.is_dir():
        from ingot.frontend.huggingface import load_checkpoint

        return load_checkpoint(path, dtype=dtype, weights=weights)
    if path.suffix == ".ir" and path.is_file():
        return parse_module(path.read_text(encoding="utf-8"), filename=path.name)
    if path.suffix == ".gguf" and path.is_file():
        from ingot.frontend.gguf import converted
        from ingot.frontend.huggingface import load_checkpoint

        module = load_checkpoint(converted(path, cache=cache), dtype=dtype, weights=weights)
        module.meta["source"] = path.name
        return module
    package, colon, name = text.partition(":")
    if colon and not path.exists() and package.replace(".", "").isidentifier() and name.isidentifier():
        return _call(package, name)
    raise CheckpointError("no such file or directory" if not path.exists() else "this is no model", where=text,
                          hint="give a checkpoint directory, a .gguf file, an .ir file, or package.module:callable")


def _call(package: str, name: str) -> Module:
    import torch

    from ingot.frontend.modules import import_module

    where = f"{package}:{name}"
    function = getattr(import_user_module(package), name, None)
    if function is None:
        raise IngotError(f"module {package} has no {name}", where=where)
    made = function()
    if isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], torch.nn.Module):
        options: dict[str, Any] = {"name": name} | dict(made[2] if len(made) == 3 else {})
        return import_module(made[0], made[1], **options)
    if isinstance(made, torch.nn.Module):
        from transformers import PreTrainedModel

        from ingot.frontend.huggingface import import_model

        if isinstance(made, PreTrainedModel):
            return import_model(made, name=name)
    raise IngotError(f"returned {type(made).__name__}, not (nn.Module, example inputs)", where=where)
