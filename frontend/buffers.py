"""Numbers for buffers that a checkpoint does not store (rope frequencies, position ids), on a model built without memory."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ingot.errors import CheckpointError


def computed_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Full name -> values on the CPU of every non-persistent buffer; the model, on the meta device, is left as it was.

    The model's own `_init_weights` writes them, as when transformers loads a checkpoint. Raises CheckpointError for a
    buffer it does not write.
    """
    found, again = _written(model, over=0), _written(model, over=1)
    for name, value in found.items():
        if not torch.equal(value, again[name]):
            raise CheckpointError(f"{type(model).__name__} does not say how to compute its buffer {name}",
                                  hint="build the model yourself and use import_module")
    return found


def _written(model: PreTrainedModel, *, over: int) -> dict[str, torch.Tensor]:
    """The buffers as `_init_weights` leaves them when they held `over` before."""
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        held = {name: buffer for name, buffer in module._buffers.items()
                if buffer is not None and name in module._non_persistent_buffers_set}
        if not held:
            continue
        for name, buffer in held.items():
            module._buffers[name] = torch.full(buffer.shape, over, dtype=buffer.dtype)
        try:
            with torch.no_grad():
                _owner(model, path)._init_weights(module)  # type: ignore[no-untyped-call]
            for name in held:
                value = module._buffers[name]
                assert value is not None
                found[f"{path}.{name}" if path else name] = value
        finally:
            module._buffers.update(held)
    return found


def _owner(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost transformers model that holds a module: it knows how to initialise it."""
    owner, here = model, model
    for part in path.split(".") if path else ():
        here = getattr(here, part)
        if isinstance(here, PreTrainedModel):
            owner = here
    return owner
