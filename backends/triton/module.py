"""A module on the GPU: its buffers and an ordered list of launches.

The func is cut into groups once; equal kernels (those of equal layers) are one function. A run binds the sizes, makes the
buffers of results, starts the kernels in order, and frees what nobody needs any more. Ops without a kernel run in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ingot.backends.torch.executor import Executor
from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.groups import Group, partition
from ingot.backends.triton.kernel import Kernel, Pointer, Variant
from ingot.backends.triton.launch import loaded, sources, start
from ingot.backends.triton.paging import in_place, pageable
from ingot.backends.triton.prebuilt import offered
from ingot.backends.triton.tuning import Tuner
from ingot.backends.triton.uploads import Uploads
from ingot.errors import IRError
from ingot.ir.dims import evaluate
from ingot.ir.interpret import solve_dims
from ingot.ir.module import Func, Module
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.value import Const, Value

Inputs = Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
Live = dict[Value, torch.Tensor]
Start = Callable[[Mapping[str, int]], None]
"""Starts a kernel with settings (constexprs and options) other than its defaults."""
Around = Callable[[Kernel, Sequence[torch.Tensor], Mapping[str, int], Start], None]
"""Called in place of every launch with the kernel, its tensors, the sizes, and what starts it."""


@dataclass(frozen=True)
class Step:
    """One group at run time. torch: runs it where there are no kernels. over: by written value, the value whose memory it
    takes. frees: values dead afterwards."""

    group: Group
    torch: Executor | None
    over: Mapping[Value, Value]
    frees: tuple[Value, ...]


class TritonModule:
    """One func of a module, compiled.

    Weights are uploaded once, when a kernel first reads them. Cache parameters that the func reuses are updated in place.
    Runs on CPU tensors where Triton was imported with TRITON_INTERPRET=1.
    """

    def __init__(self, module: Module, *, func: Func | None = None, device: torch.device | str = "cuda",
                 tuner: Tuner | None = None, uploads: Uploads | None = None, prebuilt: Path | None = None, page: int = 0,
                 overlap: bool = False) -> None:
        """device: on "meta" nothing is computed, but for the shapes. tuner: settings of kernels measured before, or to be
        measured by `tune`; every kernel's defaults when not given. uploads: where the tensors of weights come from, other than
        the module's weights. prebuilt: an artifact's folder that may hold compiled kernels. page: positions of a page of the
        caches, 0 for contiguous ones; a func that is not `pageable` has those. overlap: see `Kernel.overlapped`."""
        self.module = module
        self.func = func or module.main
        self.device = torch.device(device)
        self.tuner = tuner or Tuner()
        self.uploads = uploads or Uploads(self.device)
        self.prebuilt = prebuilt
        self._over = in_place(self.func)
        paged = pageable(self.func, page) if page else {}
        groups = partition(self.func, paged=paged)
        if paged and any(paged.keys() & {*g.outlined.inputs, *g.outputs} for g in groups if not g.variants):
            paged, groups = {}, partition(self.func)  # torch reads no pages
        self.page = page if paged else 0
        self._paged = paged
        self.groups = _named_apart(groups, overlap=overlap)
        self.kernels = list({k.name: k for g in self.groups for v in g.variants for k in v.kernels}.values())
        self.source = sources(self.kernels)
        self.steps = self._steps()
        self._functions: dict[str, Any] | None = None

    @property
    def fallbacks(self) -> list[tuple[str, str]]:
        """The ops that run in torch, and why."""
        return [(op.name, g.reason) for g in self.groups if not g.variants for op in g.ops]

    def run(self, inputs: Inputs, *, around: Around | None = None) -> list[torch.Tensor]:
        """The func's returns for one tensor per parameter, in order or by name. Raises IRError when they do not fit.

        Where caches lie in pages, those of one parameter are [pages, G, page, D], and one more input comes last: `pages`
        i32[B, T / page], the page of every run of positions. around: see `Around`; kernels are started with the tuner's settings
        where it is not given.
        """
        params = self.func.params
        if isinstance(inputs, Mapping):
            names = [*(p.hint or "" for p in params), *(["pages"] if self.page else [])]
            missing = [name for name in names if name not in inputs]
            if missing:
                raise IRError(f"func @{self.func.name} needs an input for {', '.join(f'%{n}' for n in missing)}")
            inputs = [inputs[name] for name in names]
        given, pages = (inputs[:-1], inputs[-1]) if self.page else (inputs, None)
        sizes = solve_dims([p.type for p in params], [self._shape(p, t, pages) for p, t in zip(params, given, strict=True)])
        live: Live = {}
        for param, tensor in zip(params, given, strict=True):
            live[param] = tensor.to(self.device, torch_dtype(param.type.dtype)).contiguous()
        with offered(self.prebuilt):
            for step in self.steps:
                self._do(step, live, pages, sizes, around or self._plainly)
        return [self._tensor(v, live) for v in self.func.returns]

    def _shape(self, param: Value, tensor: torch.Tensor, pages: torch.Tensor | None) -> tuple[int, ...]:
        """The shape of a parameter's value."""
        if pages is None or param not in self._paged:
            return tuple(tensor.shape)
        _, heads, _, features = tensor.shape
        return pages.shape[0], heads, pages.shape[1] * self.page, features

    def _do(self, step: Step, live: Live, pages: torch.Tensor | None, sizes: Mapping[str, int], around: Around) -> None:
        group = step.group
        if step.torch is not None and self.device.type != "meta":
            reads = [self._tensor(v, live) for v in group.outlined.inputs]
            for value, made in zip(group.outputs, step.torch.run(reads, sizes=sizes), strict=True):
                live[value] = made.contiguous()
        else:
            for value in group.outputs:
                live[value] = self._buffer(value, step, live, sizes)
            variant = next(v for v in group.variants or (Variant(()),) if v.fits(sizes))
            temps = [self._empty([evaluate(d, sizes) for d in t.dims], torch_dtype(t.dtype)) for t in variant.temps]
            for kernel in variant.kernels:
                tensors = [self._argument(p, group, live, temps, pages) for p in kernel.pointers]
                around(kernel, tensors, sizes, partial(start, self._function(kernel), kernel, tensors, sizes))
        for value in step.frees:
            live.pop(value, None)

    def _plainly(self, kernel: Kernel, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int], run: Start) -> None:
        run(self.tuner.settings(kernel, sizes))

    def tune(self, inputs: Inputs, seconds: Callable[[Callable[[], None]], float]) -> None:
        """Runs once and measures every choice of every kernel that is not in the tuner's table for these sizes.

        seconds: times a call on the device. A kernel runs many times here, which is harmless even where it writes into a
        cache: it writes the same again.
        """
        def measured(kernel: Kernel, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int], run: Start) -> None:
            run(self.tuner.measure(kernel, sizes, run, seconds))

        self.run(inputs, around=measured)

    def _argument(self, pointer: Pointer, group: Group, live: Live, temps: Sequence[torch.Tensor],
                  pages: torch.Tensor | None) -> torch.Tensor:
        if pointer.role == "temp":
            return temps[pointer.index]
        if pages is not None and pointer.role == "pages":
            return pages
        if pointer.role == "out":
            return live[group.outputs[pointer.index]]
        if pointer.form is None:
            return self._tensor(group.outlined.inputs[pointer.index], live)
        parts = [None if i < 0 else group.outlined.inputs[i] for i in pointer.form.sources]
        return self.uploads.formed(pointer.form, tuple(v if isinstance(v, Const) else None for v in parts))

    def _buffer(self, value: Value, step: Step, live: Live, sizes: Mapping[str, int]) -> torch.Tensor:
        if value in step.over:
            return self._tensor(step.over[value], live)
        if isinstance(value.op, CacheWrite):
            return self._tensor(value.op.cache, live).clone()
        return self._empty([evaluate(d, sizes) for d in value.type.dims], torch_dtype(value.type.dtype))

    def _empty(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _function(self, kernel: Kernel) -> Any:
        if self._functions is None:
            self._functions = loaded(self.source)
        return self._functions[kernel.name]

    def _tensor(self, value: Value, live: Live) -> torch.Tensor:
        return self.uploads.weight(value) if isinstance(value, Const) else live[value]

    def _steps(self) -> list[Step]:
        """What every group does at run time, and when values die."""
        last = {v: i for i, group in enumerate(self.groups) for v in (*group.outputs, *group.outlined.inputs)}
        kept = {*self.func.returns, *self.func.params}
        steps: list[Step] = []
        for i, group in enumerate(self.groups):
            over = {v: self._over[v] for v in group.outputs if v in self._over}
            frees = tuple(v for v, at in last.items() if at == i and v not in kept and not isinstance(v, Const))
            func = group.outlined.func
            runner = None if group.variants else Executor(func.module, func=func, device=self.device)
            steps.append(Step(group, runner, over, frees))
        return steps


def _named_apart(groups: Sequence[Group], *, overlap: bool) -> list[Group]:
    """The groups with different kernels under different names, and equal ones under one. overlap: see `Kernel.overlapped`."""
    by_text: dict[str, Kernel] = {}
    names: dict[str, int] = {}

    def apart(kernel: Kernel) -> Kernel:
        kernel = kernel.overlapped() if overlap else kernel
        if kernel.source not in by_text:
            count = names[kernel.name] = names.get(kernel.name, 0) + 1
            by_text[kernel.source] = kernel if count == 1 else kernel.renamed(f"{kernel.name}{count}")
        # Sizes and settings may differ where the text does not, so only the name is taken over.
        return replace(kernel, name=by_text[kernel.source].name, source=by_text[kernel.source].source)

    def each(variant: Variant) -> Variant:
        return replace(variant, kernels=tuple(map(apart, variant.kernels)))

    return [replace(g, variants=tuple(map(each, g.variants))) for g in groups]
