"""Kernels compiled before they are wanted, many at a time: what a run would start is compiled by several processes into Triton's
cache, where the run then finds it.

Triton compiles one kernel at a time, when it is first started, which for a new model adds up to minutes.
"""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ingot.backends.triton.kernel import Kernel
from ingot.backends.triton.launch import arguments, loaded, passed
from ingot.backends.triton.module import Inputs, Start, TritonModule

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Launch:
    """A start of a kernel, as far as Triton compiles for it. source: of the module it stands in. dtypes: of its tensors."""

    source: str
    name: str
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[float, ...]
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
        dtypes = tuple(passed(t.dtype) for t in tensors)
        for settings in (compiled.tuner.settings(kernel, sizes), *(({}, *kernel.choices) if choices else ())):
            grid, numbers, given = arguments(kernel, tensors, sizes, settings)
            if 0 not in grid:
                found[Launch(compiled.source, kernel.name, dtypes, numbers, tuple(given.items()))] = None

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


class Absent:
    """Triton's driver of a chip that is not there: it can start nothing. capability: of the chip, as 90."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def absent(capability: int) -> Iterator[None]:
    """Within it, Triton takes the chip at hand, if there is one, for another: its code may ask which it is compiled for."""
    import triton

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(cast("Any", Absent(capability)))
    try:
        yield
    finally:
        triton.runtime.driver._active = before


@contextmanager
def aimed(capability: int, cache: Path) -> Iterator[None]:
    """Within it, Triton compiles for a chip that need not be there, and keeps what is needed to start a kernel in a folder."""
    from triton import knobs

    with absent(capability), knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(cache)
        knobs.compilation.store_binary_only = True
        yield


def _target(capability: int | None, cache: Path | None) -> AbstractContextManager[None]:
    """`aimed`, or the chip at hand and Triton's own cache."""
    return nullcontext() if capability is None or cache is None else aimed(capability, cache)


def _enter(capability: int | None, cache: Path | None) -> None:
    """The same for the rest of a process."""
    stack = ExitStack()
    stack.enter_context(_target(capability, cache))
    atexit.register(stack.close)  # which also keeps it from being closed before


def compile_all(wanted: Iterable[Launch], *, processes: int, each: Callable[[str], None] = lambda said: None,
                chip: int | None = None, cache: Path | None = None) -> list[str]:
    """Compiles launches, each once; what went wrong. each: called with that, or nothing, after each. processes: this one alone
    where it is 1.

    chip, cache: see `aimed`; the chip at hand and Triton's own cache when not given.
    """
    errors: list[str] = []
    once = list(dict.fromkeys(wanted))
    with ExitStack() as stack:
        if min(processes, len(once)) > 1:
            pool = ProcessPoolExecutor(min(processes, len(once)), mp_context=multiprocessing.get_context("spawn"),
                                       initializer=_enter, initargs=(chip, cache))
            results = stack.enter_context(pool).map(compile_launch, once)
        else:
            stack.enter_context(_target(chip, cache))
            results = map(compile_launch, once)
        for said in results:
            each(said)
            if said:
                errors.append(said)
    return errors
