"""Choosing the next token where the logits are, so that decoding never waits for the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a token is chosen, as in `ingot.runtime.sampling.SamplingOptions`: temperature 0 is greedy; top_k 0, top_p 1 and
    min_p 0 keep all. Tokens tied with the last one kept are kept too."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def choose(logits: torch.Tensor, choice: Choice, *, uniform: torch.Tensor | None = None,
           out: torch.Tensor | None = None) -> torch.Tensor:
    """The next token of every row, i64[B], from logits [B, V] (any float type). uniform: f32[B] in [0, 1), one draw a row."""
    from ingot.backends.triton import sampling_kernels

    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
    name, numbers, settings = started(choice, vocab)
    function: Any = getattr(sampling_kernels, name)
    if choice.temperature == 0:
        function[(rows,)](logits, out, *numbers, **settings)
        return out
    drawn = torch.rand(rows, device=logits.device) if uniform is None else uniform
    function[(rows,)](logits, drawn, out, *numbers, **settings)
    return out


def started(choice: Choice, vocab: int) -> tuple[str, tuple[float, ...], dict[str, int]]:
    """Which of `sampling_kernels` is started, with which numbers behind its tensors, constexprs and options."""
    settings = {"BLOCK": BLOCK, "num_warps": 8, "enable_fp_fusion": True}
    if choice.temperature == 0:
        return "greedy", (vocab,), settings
    return "sample", (vocab, 1.0 / choice.temperature, choice.top_k, float(choice.top_p), float(choice.min_p)), settings
