"""Kernels compiled when an artifact is written, for chips that need not be there; see `prebuilt` for how a run finds them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.aot import capability
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.packing import Form
from ingot.backends.triton.paging import PAGE
from ingot.backends.triton.prebuilt import COMPILED
from ingot.backends.triton.uploads import Uploads
from ingot.backends.triton.warmup import Launch, compile_all, launches
from ingot.ir.dims import evaluate
from ingot.ir.module import Module
from ingot.ir.value import Const

BATCHES = (1, 2, 16, 32, 64)
"""Sequences whose decode step is compiled. A kernel is made for sizes of 1, for multiples of 16 and for all others, and which
kernels run depends on how many rows there are: these, and the prompts below, meet all of it that is usual."""
PROMPTS = (5, 16, 40, 48, 100, 256, 1000, 1024)
"""Tokens of a prompt, likewise."""
SAMPLING = "from ingot.backends.triton.sampling_kernels import greedy, sample\n"


def prebuild(module: Module, archs: Sequence[str], folder: Path, *, processes: int = 1,
             progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Compiles what decoding and prompts of usual sizes start into `folder` / compiled; what failed, which is compiled at run
    time then, or fails there. No weight is read. progress: told how many are done, of how many."""
    chips = {arch: capability(arch) for arch in archs}
    wanted = usual(module)
    done = itertools.count(1)
    each = (lambda said: progress(next(done), len(chips) * len(wanted))) if progress else (lambda said: None)
    errors: list[str] = []
    for arch, chip in chips.items():
        errors += [f"{arch}: {said}" for said in compile_all(wanted, processes=processes, each=each, chip=chip,
                                                             cache=folder / COMPILED)]
    for file in (folder / COMPILED).rglob("*"):
        if file.is_file() and (file.suffix not in (".cubin", ".json") or file.name.startswith("__")):
            file.unlink()
    for empty in [f for f in (folder / COMPILED).glob("*") if not any(f.iterdir())]:
        shutil.rmtree(empty)
    return errors


def usual(module: Module) -> list[Launch]:
    """The launches of runs of usual sizes, those that compile to the same once."""
    compiled = TritonModule(module, device="meta", uploads=_Outlines("meta"), page=PAGE)
    found: dict[Launch, None] = {}
    for sizes in _sizes(module):
        inputs = [torch.empty([evaluate(d, sizes) for d in p.type.dims], dtype=torch_dtype(p.type.dtype), device="meta")
                  for p in compiled.func.params]
        if compiled.page:
            inputs.append(torch.empty((sizes["B"], sizes["T"] // PAGE), dtype=torch.int32, device="meta"))
        for launch in launches(compiled, inputs):
            found[replace(launch, sizes=tuple(map(_alike, launch.sizes)))] = None
    if module.meta.get("kind") == "decoder":
        found |= dict.fromkeys(_sampling(module))
    return list(found)


def _sizes(module: Module) -> Iterator[dict[str, int]]:
    """Sizes of the symbols: of a decoder's steps and prompts, of any other module the least, some, and the most."""
    symbols = module.dims
    if {"B", "S"} <= set(symbols) and module.meta.get("kind") == "decoder":
        runs = [(batch, 1) for batch in BATCHES] + [(1, tokens) for tokens in PROMPTS]
        for batch, tokens in runs:
            known = {"B": batch, "S": tokens, "N": 1, "T": 1024}
            yield {name: known.get(name, least) for name, (least, _) in symbols.items()}
    else:
        for size in (1, 3, 16, 64):
            yield {name: max(least, min(size, most)) for name, (least, most) in symbols.items()}


def _alike(size: float) -> float:
    """The size that stands for all that Triton compiles the same code for."""
    return size if size == 1 else 3 if size % 16 else 16


def _sampling(module: Module) -> Iterator[Launch]:
    """The choice of a token from logits, which come first of the results."""
    from ingot.backends.triton.sampling import Choice, started

    logits = module.main.returns[0].type
    vocab = int(logits.dims[-1])  # type: ignore[arg-type]
    for choice in (Choice(), Choice(temperature=1.0), Choice(temperature=1.0, top_k=50)):
        name, numbers, settings = started(choice, vocab)
        dtypes = (torch_dtype(logits.dtype), *((torch.float32,) if choice.temperature else ()), torch.int64)
        yield Launch(SAMPLING, name, dtypes, numbers, tuple(settings.items()))


class _Outlines(Uploads):
    """Tensors of which only type and shape are known."""

    def weight(self, const: Const) -> torch.Tensor:
        return torch.empty(const.type.shape, dtype=torch_dtype(const.type.dtype), device=self.device)

    def formed(self, form: Form, parts: tuple[Const | None, ...]) -> torch.Tensor:
        assert parts[0] is not None
        return torch.empty(form.shape(*parts[0].type.shape), device=self.device,
                           dtype=torch.int32 if form.kind == "i32" else torch.float32)
