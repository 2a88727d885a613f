"""The stages of the GPU benchmark: each yields records of what it measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.clock import Ceilings, Clock
from gpu.models import TINY, RandomUploads, Shape, decoder, in_transformers
from ingot.backends.torch.executor import Executor
from ingot.backends.torch.tensors import to_array, to_tensor
from ingot.backends.triton.decoder import Decoder
from ingot.backends.triton.kernel import Kernel
from ingot.backends.triton.module import Start, TritonModule
from ingot.backends.triton.sampling import Choice
from ingot.backends.triton.tuning import Tuner
from ingot.ir import interpret
from ingot.ir.stand_in import StandIn
from ingot.ir.weights import ArrayWeight

Record = dict[str, Any]


@dataclass
class Bench:
    """What all stages share. tiny: shapes for a dry run."""

    clock: Clock
    ceilings: Ceilings
    shapes: list[Shape]
    batches: list[int]
    tuner: Tuner
    tune: bool
    tiny: bool

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def compiled(self, shape: Shape, weights: str) -> TritonModule:
        return TritonModule(decoder(shape, weights=weights), device=self.device, tuner=self.tuner,
                            uploads=RandomUploads(self.device))

    def lengths(self, *full: int) -> list[int]:
        return [min(n, 24) for n in full] if self.tiny else list(full)


def inputs(made: Decoder, tokens: int, start: int) -> list[torch.Tensor]:
    """ids, pos and take of `tokens` new tokens of every row from position `start`, logits of the last one wanted."""
    ids = torch.randint(0, 90, (made.batch, tokens), device=made.compiled.device)
    pos = (start + torch.arange(tokens, device=ids.device)).expand(made.batch, -1).contiguous()
    return [ids, pos, torch.full((made.batch, 1), tokens - 1, device=ids.device)]


# --- kernels ------------------------------------------------------------------------------------------------------


def kernels(bench: Bench) -> Iterator[Record]:
    """Every kernel against the reference on this device, then its speed in a decode step and in a prompt."""
    yield from checks(bench)
    for shape in bench.shapes:
        for weights in ("bf16", "int4"):
            compiled = bench.compiled(shape, weights)
            for batch, tokens in [(b, 1) for b in bench.batches] + [(1, n) for n in bench.lengths(512)]:
                context = bench.lengths(512)[0]
                made = Decoder(compiled, batch=batch, capacity=context + tokens)
                ids, pos, take = inputs(made, tokens, context)
                said = {"stage": "kernels", "model": shape.name, "weights": weights, "batch": batch, "tokens": tokens}
                for record in timed(bench, made, ids, pos, take):
                    yield {**said, **record}


def checks(bench: Bench) -> Iterator[Record]:
    """The differential cases of every op, and two whole models, run on the device."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.backends.op_cases import CASES
    from tests.backends.tolerance import coarsest, distance, tolerance

    worst: dict[str, float] = {}
    for case in CASES[::40] if bench.tiny else CASES:
        made = case.make()
        compiled = TritonModule(made.module, device=bench.device)
        values = [v for o in made.func.ops for v in (*o.operands, *o.results)]
        for sizes in case.sizes:
            arrays = made.inputs(sizes)
            tensors = [to_tensor(np.array(a), p.type.dtype).to(bench.device) for a, p in zip(arrays, made.func.params)]
            wanted = interpret.run(made.module, arrays, precision="f64")
            for got, want, result in zip(compiled.run(tensors), wanted, made.func.returns):
                dtype = coarsest([v.type.dtype for v in values]) if result.type.dtype.is_float else result.type.dtype
                part = distance(to_array(got), want) / max(tolerance(case.op, dtype.name, "triton").part, 1e-30)
                worst[case.op] = max(worst.get(case.op, 0.0), part)
    for op, part in worst.items():
        yield {"stage": "kernels", "check": op, "error_of_allowed": part, "ok": part <= 1}
    for weights in ("bf16", "int4"):
        yield {"stage": "kernels", "check": f"decoder {weights}", **whole(bench, weights)}


def whole(bench: Bench, weights: str) -> Record:
    """A small decoder by kernels against the torch executor in float64, prompt and step."""
    module = decoder(Shape("small", TINY), weights=weights)
    for const in module.consts.values():
        if not isinstance(const.weight, ArrayWeight):
            const.weight = StandIn(const.type, const.weight.origin)
    compiled = TritonModule(module, device=bench.device)
    reference = Executor(module, device=bench.device, dtype=torch.float64)
    made = Decoder(compiled, batch=2, capacity=32)
    ids, pos, take = inputs(made, 7, 0)
    given = {"ids": ids, "pos": pos, "take": take} | {p.hint or "": c.double() for p, c in made.caches.items()}
    wanted = reference.run(given)[0]
    got = made.feed(ids, pos, take).double()
    error = float((got - wanted).abs().max() / wanted.abs().max())
    return {"error_of_allowed": error / 3e-2, "ok": error < 3e-2}


def timed(bench: Bench, made: Decoder, ids: torch.Tensor, pos: torch.Tensor, take: torch.Tensor) -> Iterator[Record]:
    """Every different kernel of one run: seconds, bytes per second of the tensors it is given, floating operations."""
    seen: dict[str, Record] = {}

    def around(kernel: Kernel, tensors: Any, sizes: Any, run: Start) -> None:
        settings = bench.tuner.measure(kernel, sizes, run, bench.clock.seconds) if bench.tune and kernel.choices else (
            bench.tuner.settings(kernel, sizes))
        if kernel.name not in seen:
            seconds = bench.clock.seconds(lambda: run(settings))
            size = sum(t.nbytes for t in tensors)
            seen[kernel.name] = {"kernel": kernel.name, "seconds": seconds, "count": 0, "bytes_per_second": size / seconds,
                                 "of_copy": size / seconds / bench.ceilings.bandwidth, "settings": dict(settings)}
            if kernel.name.startswith("linear") and len(tensors) >= 3:
                rows, out = ids.numel(), tensors[-1]
                weight = max(tensors[:-1], key=lambda t: t.numel())
                flops = 2 * rows * weight.numel() * (8 if weight.dtype == torch.int32 else 1)
                seen[kernel.name] |= {"flops_per_second": flops / seconds, "of_matmul": flops / seconds / bench.ceilings.flops,
                                      "outputs": out.numel()}
        run(settings)
        seen[kernel.name]["count"] += 1

    given = {"ids": ids, "pos": pos, "take": take} | {p.hint or "": c for p, c in made.caches.items()}
    made.compiled.run([given[p.hint or ""] for p in made.compiled.func.params], around=around)
    yield from seen.values()


# --- whole models -------------------------------------------------------------------------------------------------


def decode(bench: Bench) -> Iterator[Record]:
    """Tokens per second of greedy decoding after 512 positions, one CUDA graph a step."""
    for shape in bench.shapes:
        for weights in ("bf16", "int4"):
            compiled = bench.compiled(shape, weights)
            for batch in bench.batches:
                yield {"stage": "decode", "model": shape.name, "weights": weights, **decoding(bench, compiled, batch)}
            del compiled
            _free(bench)


def decoding(bench: Bench, compiled: TritonModule, batch: int) -> Record:
    """One batch size."""
    context, steps = bench.lengths(512)[0], 2 if bench.tiny else 128
    made = Decoder(compiled, batch=batch, capacity=context + steps + 8)
    if bench.tune:
        ids, pos, take = inputs(made, 1, context)
        given = {"ids": ids, "pos": pos, "take": take} | {p.hint or "": c for p, c in made.caches.items()}
        compiled.tune([given[p.hint or ""] for p in compiled.func.params], bench.clock.seconds)
    made.pos.fill_(context)
    made.step(Choice())
    seconds = bench.clock.span(lambda: [made.step(Choice()) for _ in range(steps)])
    read = compiled.uploads.nbytes + sum(c.nbytes for c in made.caches.values()) * (context + steps / 2) / made.capacity
    return {"batch": batch, "tokens_per_second": batch * steps / seconds, "seconds_per_step": seconds / steps,
            "bytes_per_second": read * steps / seconds, "of_copy": read * steps / seconds / bench.ceilings.bandwidth}


def prefill(bench: Bench) -> Iterator[Record]:
    """Tokens per second of prompts of 512 and 4096 tokens."""
    for shape in bench.shapes:
        for weights in ("bf16", "int4"):
            compiled = bench.compiled(shape, weights)
            for tokens in bench.lengths(512, 4096):
                made = Decoder(compiled, batch=1, capacity=tokens)
                ids, pos, take = inputs(made, tokens, 0)
                seconds = bench.clock.seconds(lambda made=made, ids=ids, pos=pos, take=take: made.feed(ids, pos, take))
                linears = [op for op in compiled.func.ops if op.name == "linear"]
                # The last linear gives the logits of one token; all others see every token.
                flops = sum(2 * tokens * int(np.prod(op.operands[1].type.shape)) for op in linears[:-1])
                yield {"stage": "prefill", "model": shape.name, "weights": weights, "tokens": tokens, "seconds": seconds,
                       "tokens_per_second": tokens / seconds, "flops_per_second": flops / seconds,
                       "of_matmul": flops / seconds / bench.ceilings.flops}
            del compiled
            _free(bench)


def compare(bench: Bench) -> Iterator[Record]:
    """bf16 decoding beside transformers under torch.compile(max-autotune) with CUDA graphs and a static cache, by turns."""
    for shape in bench.shapes:
        compiled = bench.compiled(shape, "bf16")
        model = in_transformers(shape, bench.device)
        for batch in bench.batches:
            ours = decoding(bench, compiled, batch)["tokens_per_second"]
            theirs = rival(bench, model, batch)
            again = decoding(bench, compiled, batch)["tokens_per_second"]
            yield {"stage": "compare", "model": shape.name, "batch": batch, "tokens_per_second": (ours + again) / 2,
                   "torch_compile_tokens_per_second": theirs, "ratio": (ours + again) / 2 / theirs}
        del compiled, model
        _free(bench)


def rival(bench: Bench, model: Any, batch: int) -> float:
    """Tokens per second of `generate`: the difference of a long and a short run, so that the prompt does not count."""
    from transformers import CompileConfig

    ids = torch.randint(0, 90, (batch, bench.lengths(512)[0]), device=bench.device)
    short, long = (2, 4) if bench.tiny else (16, 144)

    def run(count: int) -> None:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                       cache_implementation="static", compile_config=CompileConfig(mode="max-autotune", fullgraph=False))

    for count in (short, long, short):
        run(count)
    few, many = (min(bench.clock.span(lambda n=n: run(n)) for _ in range(3)) for n in (short, long))
    return batch * (long - short) / max(many - few, 1e-9)


def _free(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


STAGES = {"kernels": kernels, "decode": decode, "prefill": prefill, "compare": compare}
