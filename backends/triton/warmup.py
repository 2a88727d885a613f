"""Kernels compiled before they are wanted, many at a time: what a run would start is compiled by several processes into Triton's
cache, where the run then finds it.

Triton compiles one kernel at a time, when it is first started, which for a new model adds up to minutes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ingot.backends.triton.kernel import Kernel
from ingot.backends.triton.launch import arguments, loaded
from ingot.backends.triton.module import Inputs, Start, TritonModule


@dataclass(frozen=True)
class Launch:
    """A start of a kernel, as far as Triton compiles for it. source: of the module it stands in. dtypes: of its tensors."""

    source: str
    name: str
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...]


def launches(compiled: TritonModule, inputs: Inputs, *, choices: bool = False) -> list[Launch]:
    """What a run with these inputs would start. No kernel runs; ops without one run in torch, on whatever is in memory.

    choices: also what tuning would start.
    """
    found: dict[Launch, None] = {}

    def noted(kernel: Kernel, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int], run: Start) -> None:
        for pointer, tensor in zip(kernel.pointers, tensors, strict=True):
            if pointer.role == "out" and tensor.dtype in (torch.int32, torch.int64):
                tensor.zero_()  # torch may look something up by it
        for settings in (compiled.tuner.settings(kernel, sizes), *(({}, *kernel.choices) if choices else ())):
            grid, numbers, given = arguments(kernel, tensors, sizes, settings)
            if 0 not in grid:
                found[Launch(compiled.source, kernel.name, tuple(t.dtype for t in tensors), numbers, tuple(given.items()))] = None

    compiled.run(inputs, around=noted)
    return list(found)


def compile_launch(launch: Launch) -> str:
    """Compiles for the chip at hand, into Triton's cache; what went wrong, or nothing."""
    function = loaded(launch.source)[launch.name]
    try:
        function.warmup(*launch.dtypes, *launch.sizes, grid=(1,), **dict(launch.settings))
    except Exception as error:
        # Each version of Triton has errors of its own; the run itself will raise it where it can be dealt with.
        return f"{launch.name}: {type(error).__name__}: {error}"
    return ""


def compile_all(wanted: Iterable[Launch], *, processes: int,
                each: Callable[[str], None] = lambda said: None) -> list[str]:
    """Compiles launches, each once, by several processes; what went wrong. each: called with that, or nothing, after each."""
    errors: list[str] = []
    once = list(dict.fromkeys(wanted))
    with ProcessPoolExecutor(max(1, min(processes, len(once))), mp_context=multiprocessing.get_context("spawn")) as pool:
        for said in pool.map(compile_launch, once):
            each(said)
            if said:
                errors.append(said)
    return errors
