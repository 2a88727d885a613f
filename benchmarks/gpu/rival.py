"""The rival: the same shape in transformers, its decode step under torch.compile with CUDA graphs and a static cache."""

from __future__ import annotations

import sys
from typing import Any

import torch

from gpu.clock import Clock
from gpu.models import Shape, in_transformers


def rival(shape: Shape, clock: Clock, *, batch: int, context: int, steps: int) -> float:
    """Tokens per second of greedy decoding in bf16 after `context` positions.

    The step, token to token, is compiled as a whole (max-autotune, which records CUDA graphs) and called in a loop without
    anything else; where this transformers cannot be compiled whole, its own `generate` is timed.
    """
    with torch.inference_mode(False), torch.no_grad():
        model = in_transformers(shape, clock.device)
        ids = torch.randint(0, 90, (batch, context), device=clock.device)
        try:
            return batch * steps / _stepping(model, clock, ids, steps)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"the step of transformers is not compiled whole ({why}); generate is timed", file=sys.stderr)
            torch._dynamo.reset()
            return _generating(model, clock, ids, steps)
        finally:
            torch._dynamo.reset()


def _stepping(model: Any, clock: Clock, ids: torch.Tensor, steps: int) -> float:
    """Seconds of `steps` steps."""
    from transformers import StaticCache

    batch, context = ids.shape
    cache = StaticCache(config=model.config, max_cache_len=context + 2 * steps + 16)

    def step(token: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = model(token, position_ids=at[None].expand(batch, 1), cache_position=at, past_key_values=cache,
                                   use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        return made

    places = torch.arange(context, device=ids.device)
    token = model(ids, position_ids=places[None].expand(batch, -1), cache_position=places, past_key_values=cache,
                  use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
    compiled = torch.compile(step, mode="max-autotune", fullgraph=True)
    at = torch.tensor([context], device=ids.device)

    def run(count: int) -> None:
        nonlocal token
        for _ in range(count):
            torch.compiler.cudagraph_mark_step_begin()
            token = compiled(token, at).clone()
            at.add_(1)

    run(8)
    return min(clock.span(lambda: run(steps // 2)) for _ in range(3)) / (steps // 2) * steps


def _generating(model: Any, clock: Clock, ids: torch.Tensor, steps: int) -> float:
    """Tokens per second of `generate`: the difference of a long and a short run, so that the prompt does not count."""
    from transformers import CompileConfig

    def run(count: int) -> None:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                       cache_implementation="static", compile_config=CompileConfig(mode="max-autotune", fullgraph=False))

    short, long = 2, steps + 2
    for count in (short, long, short):
        run(count)
    few, many = (min(clock.span(lambda n=n: run(n)) for _ in range(3)) for n in (short, long))  # type: ignore[misc]
    return ids.shape[0] * steps / max(many - few, 1e-9)
