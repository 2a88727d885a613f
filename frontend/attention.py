"""Attention as one node: transformers' attention and mask interfaces around one custom torch op.

Under `ATTENTION` a model hands its queries, keys and values to `ingot::attention`, with key heads still grouped, and the
mask it would have built becomes a `Mask`: a plain description (causal, window, padding) instead of a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from ingot.errors import UnsupportedOp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

ATTENTION = "ingot"
"""The name under which transformers knows this attention with masks as descriptions."""
WITH_TENSORS = "ingot-tensors"
"""The same attention with masks as tensors, for models that compute on their mask."""


@torch.library.custom_op("ingot::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor | None,
              sinks: torch.Tensor | None, scale: float, causal: bool, window: int | None,
              softcap: float | None) -> torch.Tensor:
    """q [b, h, s, d], k [b, g, t, d], v [b, g, t, e] -> [b, h, s, e]; the meaning is `ingot.ir.ops.attention.Attention`."""
    raise NotImplementedError("ingot::attention exists to be traced, not to run")


@attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor | None,
      sinks: torch.Tensor | None, scale: float, causal: bool, window: int | None, softcap: float | None) -> torch.Tensor:
    return q.new_empty((*q.shape[:3], v.shape[3]))


class MaskOpened(UnsupportedOp):
    """A model computes on its attention mask instead of handing it on."""


@dataclass(frozen=True)
class Mask:
    """What a model's attention mask says. window: as in the `attention` op; padding: [b, t], nonzero where a key is visible.

    It is no tensor: computing on it raises MaskOpened.
    """

    causal: bool
    window: int | None
    padding: torch.Tensor | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MaskOpened(f"the model reads {name} of its attention mask")

    def _opened(self, *operands: object) -> Any:
        raise MaskOpened("the model computes on its attention mask")

    __getitem__ = __add__ = __radd__ = __mul__ = __rmul__ = __and__ = __rand__ = __invert__ = _opened


_STANDARD: dict[frozenset[str], tuple[bool, int | None]] = {
    frozenset({"causal_mask_function"}): (True, None),
    frozenset({"bidirectional_mask_function"}): (False, None),
    frozenset({"causal_mask_function", "sliding_window_overlay"}): (True, 0),
    frozenset({"bidirectional_mask_function", "sliding_window_bidirectional_overlay"}): (False, 1),
}
"""Mask functions of transformers by the parts they are made of: causal, and what to add to their window."""


def _parts(function: Callable[..., Any]) -> Iterator[str]:
    """Names of the functions an intersection of mask functions is made of."""
    name = function.__qualname__.split(".")[0]
    if name != "and_masks":
        yield name
        return
    for cell in function.__closure__ or ():
        for part in cell.cell_contents:
            yield from _parts(part)


def describe_mask(*, mask_function: Callable[..., Any], attention_mask: torch.Tensor | None, local_size: int | None = None,
                  **rest: Any) -> Mask | torch.Tensor | None:
    """transformers' mask interface: a `Mask` where the mask is a standard one, else the boolean tensor itself."""
    found = _STANDARD.get(frozenset(_parts(mask_function)))
    if found is None:
        return mask_tensor(mask_function=mask_function, attention_mask=attention_mask, local_size=local_size, **rest)
    causal, extra = found
    return Mask(causal, None if extra is None or local_size is None else local_size + extra, attention_mask)


def mask_tensor(**options: Any) -> torch.Tensor | None:
    """transformers' mask interface: the boolean tensor [b, 1, s, t], True where a key is visible."""
    from transformers.masking_utils import sdpa_mask

    given: dict[str, Any] = options | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor | None = sdpa_mask(**given)
    return mask


def forward(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
            attention_mask: Mask | torch.Tensor | None, *, scaling: float | None = None, is_causal: bool | None = None,
            softcap: float | None = None, s_aux: torch.Tensor | None = None, position_bias: torch.Tensor | None = None,
            **rest: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: one `ingot::attention`, the result as [b, s, h, e]."""
    unknown = [name for name, given in rest.items() if isinstance(given, torch.Tensor) and name not in _IGNORED]
    if unknown:
        raise UnsupportedOp(f"the attention of {type(module).__name__} is given {', '.join(unknown)}, which is not imported",
                            hint="teach ingot/frontend/attention.py what it means")
    mask, padding, bias, window = attention_mask, None, position_bias, None
    if isinstance(mask, Mask):
        causal, window, padding = mask.causal, mask.window, mask.padding
    elif mask is None:
        causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    else:
        causal = False
        shut = torch.where(mask, 0.0, -torch.inf).to(query.dtype) if mask.dtype == torch.bool else mask
        bias = shut if bias is None else bias + shut
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    out = attention(query, key, value, padding, bias, s_aux, scale, causal, window, softcap)
    return out.transpose(1, 2).contiguous(), None


_IGNORED = frozenset({"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "position_embeddings"})
"""Tensors that models pass along to every attention implementation and that change nothing here."""


def implementation(model: type[PreTrainedModel], *, tensors: bool = False) -> str:
    """The attention to import a model class with: this one, or its own written out where it does not take another.

    tensors: whether masks are tensors.
    """
    if not hasattr(sys.modules[model.__module__], "ALL_ATTENTION_FUNCTIONS"):
        return "eager"
    return WITH_TENSORS if tensors else ATTENTION


def register() -> None:
    """Tell transformers about this attention. Harmless when repeated."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for name, mask in ((ATTENTION, describe_mask), (WITH_TENSORS, mask_tensor)):
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, mask)


@contextmanager
def one_sequence_per_row() -> Iterator[None]:
    """While tracing: positions are inputs of their own and do not mean that a row packs several sequences."""
    with patch("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None, create=True):
        yield
