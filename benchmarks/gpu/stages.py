"""The stages of the GPU benchmark: each yields records of what it measured."""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.clock import Ceilings, Clock
from gpu.models import TINY, RandomUploads, Shape, decoder
from gpu.rival import rival
from ingot.backends.torch.executor import Executor
from ingot.backends.torch.tensors import to_array, to_tensor
from ingot.backends.triton.decoder import Decoder
from ingot.backends.triton.kernel import Kernel
from ingot.backends.triton.module import Start, TritonModule
from ingot.backends.triton.packing import stored_bits
from ingot.backends.triton.paging import PAGE
from ingot.backends.triton.sampling import Choice
from ingot.backends.triton.tuning import Tuner
from ingot.backends.triton.warmup import Launch, compile_all, launches
from ingot.ir import interpret
from ingot.ir.stand_in import StandIn
from ingot.ir.weights import ArrayWeight

Record = dict[str, Any]


@dataclass
class Bench:
    """What all stages share. weights: formats of the linears. tiny: shapes for a dry run. processes: that compile. page: of the
    caches, in positions; 0 where they lie in one piece. every: of the cases of ops, one in so many is checked.
    overlap: kernels start while the one before ends."""

    clock: Clock
    ceilings: Ceilings
    shapes: list[Shape]
    weights: list[str]
    batches: list[int]
    tuner: Tuner
    tune: bool
    tiny: bool
    processes: int = 1
    page: int = PAGE
    every: int = 1
    overlap: bool = False

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def compiled(self, shape: Shape, weights: str, *, page: int | None = None) -> TritonModule:
        return TritonModule(decoder(shape, weights=weights), device=self.device, tuner=self.tuner,
                            uploads=RandomUploads(self.device), page=self.page if page is None else page, overlap=self.overlap)

    @property
    def quick(self) -> Clock:
        """For choosing between settings."""
        return replace(self.clock, budget=self.clock.budget / 6)

    def started(self, compiled: TritonModule, inputs: list[torch.Tensor]) -> list[Launch]:
        """What a run starts, tuning included where that is asked for."""
        return launches(compiled, inputs, choices=self.tune)

    def warm(self, wanted: list[Launch]) -> None:
        """Compiles what is to be started, by all processes; what fails will say so when it is started."""
        if self.device.type == "cuda":
            compile_all(wanted, processes=self.processes, each=lambda said: print(said, file=sys.stderr) if said else None)

    def lengths(self, *full: int) -> list[int]:
        return [min(n, 24) for n in full] if self.tiny else list(full)


# --- kernels ------------------------------------------------------------------------------------------------------


@dataclass
class Worst:
    """The largest errors of some results. error: as a part of the largest magnitude, see `tests.backends.tolerance`."""

    results: int = 0
    error: float = 0.0
    error_of_allowed: float = 0.0

    def add(self, error: float, allowed: float) -> None:
        self.results += 1
        error = error if error == error else float("inf")  # what is not a number is worse than any
        self.error = max(self.error, error)
        self.error_of_allowed = max(self.error_of_allowed, error / max(allowed, 1e-30))


def checked(bench: Bench) -> Iterator[Record]:
    """The differential cases of every op, and whole models in every format, run on the device; errors by op and element type."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.backends.op_cases import CASES
    from tests.backends.tolerance import coarsest, distance, tolerance

    worst: dict[str, Worst] = defaultdict(Worst)
    ready = []
    for case in CASES[::bench.every]:
        made = case.make()
        compiled = TritonModule(made.module, device=bench.device)
        for sizes in case.sizes:
            arrays = made.inputs(sizes)
            tensors = [to_tensor(np.array(a), p.type.dtype).to(bench.device) for a, p in zip(arrays, made.func.params)]
            ready.append((case, made, compiled, arrays, tensors))
    bench.warm([found for _, _, compiled, _, tensors in ready for found in launches(compiled, [t.clone() for t in tensors])])
    for case, made, compiled, arrays, tensors in ready:
        values = [v for o in made.func.ops for v in (*o.operands, *o.results)]
        wanted = interpret.run(made.module, arrays, precision="f64")
        for got, want, result in zip(compiled.run(tensors), wanted, made.func.returns):
            dtype = coarsest([v.type.dtype for v in values]) if result.type.dtype.is_float else result.type.dtype
            error, allowed = distance(to_array(got), want), tolerance(case.op, dtype.name, "triton").part
            for name in (case.op, f"results in {dtype.name}"):
                worst[name].add(error, allowed)
    for name, found in worst.items():
        yield {"stage": "check", "check": name, **asdict(found), "ok": found.error_of_allowed <= 1}
    for weights in bench.weights:
        yield {"stage": "check", "check": f"decoder {weights}", **whole(bench, weights)}


def kernels(bench: Bench) -> Iterator[Record]:
    """The speed of every kernel in a decode step and in a prompt, and that of attention alone after 32k positions."""
    for shape in bench.shapes:
        for weights in bench.weights:
            compiled = bench.compiled(shape, weights)
            context, far = bench.lengths(512, 32768)
            runs = [(compiled, b, 1, context) for b in bench.batches] + [(compiled, 1, context, 0)]
            if weights == "bf16" and shape.arguments["max_position_embeddings"] >= far:
                other = bench.compiled(shape, weights, page=0 if bench.page else PAGE)
                runs += [(each, 1, 1, far - 1) for each in (compiled, other)]
            made = [(Decoder(each, batch=batch, capacity=start + tokens), tokens, start) for each, batch, tokens, start in runs]
            bench.warm([found for each, tokens, start in made
                        for found in bench.started(each.compiled, each.trial(tokens, start=start))])
            for each, tokens, start in made:
                said = {"stage": "kernels", "model": shape.name, "weights": weights, "batch": each.batch, "tokens": tokens,
                        "context": start, "page": each.compiled.page}
                for record in timed(bench, each, tokens, start):
                    if start <= context or "attention" in record["kernel"]:
                        yield {**said, **record}
            del compiled, runs, made, each
            _free(bench)


def whole(bench: Bench, weights: str) -> Record:
    """A small decoder by kernels against the torch executor in float64, caches in one piece and in pages.

    Where inputs are coded, what is rounded otherwise may become another code: no kernel is to err much more than torch does in
    the same type.
    """
    module = decoder(Shape("small", TINY), weights=weights)
    for const in module.consts.values():
        if not isinstance(const.weight, ArrayWeight):
            const.weight = StandIn(const.type, const.weight.origin)
    def given(page: int) -> tuple[TritonModule, list[torch.Tensor]]:
        compiled = TritonModule(module, device=bench.device, page=page, overlap=bench.overlap)
        inputs = Decoder(compiled, batch=2, capacity=32).trial(7, start=12)
        inputs[0] = 7 * torch.arange(14, device=bench.device).reshape(2, 7) % 90
        return compiled, inputs

    def error(logits: torch.Tensor) -> float:
        return float((logits.double() - wanted).abs().max() / wanted.abs().max())

    plain = given(0)[1]
    exact = Executor(module, device=bench.device, dtype=torch.float64)
    wanted = exact.run([t.double() if t.is_floating_point() else t for t in plain])[0]
    allowed = max(3e-2, 1.5 * error(Executor(module, device=bench.device).run(plain)[0]) if "+" in weights else 0.0)
    worst = max(error(compiled.run(inputs)[0]) for compiled, inputs in map(given, (0, 16)))
    return {"error": worst, "error_of_allowed": worst / allowed, "ok": worst < allowed}


def timed(bench: Bench, made: Decoder, tokens: int, start: int) -> Iterator[Record]:
    """Every different kernel of one run: seconds, bytes per second of the tensors it is given, floating operations."""
    seen: dict[str, Record] = {}

    def around(kernel: Kernel, tensors: Any, sizes: Any, run: Start) -> None:
        settings = bench.tuner.measure(kernel, sizes, run, bench.quick.seconds) if bench.tune and kernel.choices else (
            bench.tuner.settings(kernel, sizes))
        if kernel.name not in seen:
            seconds = bench.clock.seconds(lambda: run(settings))
            # A lookup reads a few rows of its table only.
            size = sum(t.nbytes for t in tensors) if not kernel.name.startswith("embedding") else 2 * tensors[-1].nbytes
            seen[kernel.name] = {"kernel": kernel.name, "seconds": seconds, "count": 0, "bytes_per_second": size / seconds,
                                 "of_copy": size / seconds / bench.ceilings.bandwidth, "settings": dict(settings)}
            # Behind the last attention of a prompt only the last token goes on, as one row.
            flops = 2 * made.batch * (1 if "_row" in kernel.name else tokens) * weights_of(kernel, tensors)
            if flops:
                seen[kernel.name] |= {"flops_per_second": flops / seconds, "of_matmul": flops / seconds / bench.ceilings.flops}
        run(settings)
        seen[kernel.name]["count"] += 1

    made.compiled.run(made.trial(tokens, start=start), around=around)
    yield from seen.values()


def weights_of(kernel: Kernel, tensors: Any) -> int:
    """Elements of the weight that a kernel of a linear multiplies by; 0 for others."""
    if not kernel.name.startswith("linear") or "_unpack" in kernel.name or "_join" in kernel.name:
        return 0
    for pointer, tensor in zip(kernel.pointers, tensors, strict=True):
        if pointer.form is not None and pointer.form.part == "words":
            return int(tensor.numel()) * 32 // stored_bits(pointer.form.format)
    return max(int(t.numel()) for p, t in zip(kernel.pointers, tensors, strict=True) if p.role != "out" and t.dim() == 2)


# --- whole models -------------------------------------------------------------------------------------------------


def decode(bench: Bench) -> Iterator[Record]:
    """Tokens per second of greedy decoding after 512 positions, one CUDA graph a step."""
    for shape in bench.shapes:
        for weights in bench.weights:
            compiled = bench.compiled(shape, weights)
            warm_decoding(bench, compiled)
            for batch in bench.batches:
                yield {"stage": "decode", "model": shape.name, "weights": weights, "page": bench.page, "overlap": bench.overlap,
                       **decoding(bench, compiled, batch)}
            del compiled
            _free(bench)


def warm_decoding(bench: Bench, compiled: TritonModule) -> None:
    """Compiles what decoding at every batch size will start."""
    made = (Decoder(compiled, batch=batch, capacity=capacity(bench)) for batch in bench.batches)
    bench.warm([found for each in made for found in bench.started(compiled, each.trial(1, start=bench.lengths(512)[0]))])


def capacity(bench: Bench) -> int:
    """Positions that a decoder has room for."""
    return bench.lengths(512)[0] + (2 if bench.tiny else 128) + 8


def decoding(bench: Bench, compiled: TritonModule, batch: int) -> Record:
    """One batch size."""
    context, steps = bench.lengths(512)[0], 2 if bench.tiny else 128
    made = Decoder(compiled, batch=batch, capacity=capacity(bench))
    if bench.tune:
        compiled.tune(made.trial(1, start=context), bench.quick.seconds)
    made.reserve([0] * batch, [made.capacity] * batch)
    made.pos.fill_(context)
    made.step(Choice())
    seconds = bench.clock.span(lambda: [made.step(Choice()) for _ in range(steps)])
    read = compiled.uploads.nbytes + sum(c.nbytes for c in made.caches.tensors.values()) * (context + steps / 2) / made.capacity
    return {"batch": batch, "tokens_per_second": batch * steps / seconds, "seconds_per_step": seconds / steps,
            "bytes_per_second": read * steps / seconds, "of_copy": read * steps / seconds / bench.ceilings.bandwidth}


def prefill(bench: Bench) -> Iterator[Record]:
    """Tokens per second of prompts of 512 and 4096 tokens."""
    for shape in bench.shapes:
        for weights in bench.weights:
            compiled = bench.compiled(shape, weights)
            lengths = bench.lengths(512, 4096)
            bench.warm([found for n in lengths
                        for found in bench.started(compiled, Decoder(compiled, batch=1, capacity=n).trial(n))])
            for tokens in lengths:
                made = Decoder(compiled, batch=1, capacity=tokens)
                if bench.tune:
                    compiled.tune(made.trial(tokens), bench.quick.seconds)
                given = made.trial(tokens)
                seconds = bench.clock.seconds(lambda run=compiled.run, given=given: run(given))
                linears = [op for op in compiled.func.ops if op.name == "linear"]
                # The last linear gives the logits of one token; all others see every token.
                flops = sum(2 * tokens * int(np.prod(op.operands[1].type.shape)) for op in linears[:-1])
                yield {"stage": "prefill", "model": shape.name, "weights": weights, "tokens": tokens, "seconds": seconds,
                       "tokens_per_second": tokens / seconds, "flops_per_second": flops / seconds,
                       "of_matmul": flops / seconds / bench.ceilings.flops}
            del compiled, made
            _free(bench)


def compare(bench: Bench) -> Iterator[Record]:
    """Decoding in every format beside the same shape in bf16 under torch.compile, by turns: ours, theirs, ours again."""
    if find_spec("transformers") is None:
        print("transformers is not here: nothing is compared", file=sys.stderr)
        return
    for shape in bench.shapes:
        made = {weights: bench.compiled(shape, weights) for weights in bench.weights}
        for compiled in made.values():
            warm_decoding(bench, compiled)
        for batch in bench.batches:
            before = {weights: decoding(bench, compiled, batch) for weights, compiled in made.items()}
            theirs = rival(shape, bench.clock, batch=batch, context=bench.lengths(512)[0], steps=2 if bench.tiny else 128)
            for weights, compiled in made.items():
                ours = (before[weights]["tokens_per_second"] + decoding(bench, compiled, batch)["tokens_per_second"]) / 2
                yield {"stage": "compare", "model": shape.name, "weights": weights, "batch": batch, "tokens_per_second": ours,
                       "torch_compile_tokens_per_second": theirs, "ratio": ours / theirs}
        del made, compiled
        _free(bench)


def _free(bench: Bench) -> None:
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


STAGES = {"check": checked, "kernels": kernels, "decode": decode, "prefill": prefill, "compare": compare}
