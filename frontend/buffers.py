"""Numbers for buffers that a checkpoint does not store (rope frequencies, position ids), on a model built without memory."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ingot.errors import CheckpointError

_UNSET = {torch.bool: None}


def computed_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Full name -> values on the CPU of every non-persistent buffer; the model, on the meta device, is left as it was.

    The model's own `_init_weights` writes them, as when transformers loads a checkpoint. Raises CheckpointError for a
    buffer it does not write.
    """
    found: dict[str, torch.Tensor] = {}
    owner = model
    for path, module in model.named_modules():
        names = [n for n in module._non_persistent_buffers_set if module._buffers.get(n) is not None]
        if isinstance(module, PreTrainedModel):
            owner = module
        if not names:
            continue
        before = dict(module._buffers)
        for name in names:
            module._buffers[name] = _blank(before[name])
        try:
            with torch.no_grad():
                _owner(model, path)._init_weights(module)
            for name in names:
                value = module._buffers[name]
                assert value is not None
                full = f"{path}.{name}" if path else name
                if torch.equal(value.nan_to_num(0.5), _blank(value).nan_to_num(0.5)):
                    raise CheckpointError(f"{type(owner).__name__} does not say how to compute its buffer {full}",
                                          hint="build the model yourself and use import_module")
                found[full] = value
        finally:
            module._buffers.update(before)
    return found


def _blank(like: torch.Tensor | None) -> torch.Tensor:
    """A tensor of values that no buffer has, to see whether it was written."""
    assert like is not None
    if like.dtype == torch.bool:
        return torch.zeros(like.shape, dtype=torch.bool)
    value = torch.nan if like.is_floating_point() else torch.iinfo(like.dtype).min
    return torch.full(like.shape, value, dtype=like.dtype)


def _owner(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost transformers model that holds a module: it knows how to initialise it."""
    found: torch.nn.Module = model
    here: torch.nn.Module = model
    for part in path.split(".") if path else ():
        here = getattr(here, part)
        if isinstance(here, PreTrainedModel):
            found = here
    assert isinstance(found, PreTrainedModel)
    return found
