"""A kernel as data: its source, what it takes, how it is started. Equal kernels are one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ingot.backends.triton.packing import Form
from ingot.ir.dims import Dim, evaluate
from ingot.ir.types import DType


@dataclass(frozen=True)
class Pointer:
    """A tensor parameter of a kernel.

    type: what it points to, as in a Triton signature. role: `in` (a parameter of the outlined func), `out` (a return of it),
    `temp` (memory between two kernels of a group) or `pages` (see `paging`); index: which one. form: how weights are laid out
    anew for it.
    """

    name: str
    type: str
    role: str = "in"
    index: int = 0
    form: Form | None = None


@dataclass(frozen=True)
class Grid:
    """How many programs: for every axis the product of factors, each a dim over a block (a constexpr), rounded up."""

    axes: tuple[tuple[tuple[Dim, str | None], ...], ...]

    def size(self, sizes: Mapping[str, int], constants: Mapping[str, int]) -> tuple[int, ...]:
        """Programs along each axis for these sizes and constexprs."""
        out = []
        for factors in self.axes:
            count = 1
            for dim, block in factors:
                count *= -(-evaluate(dim, sizes) // (constants[block] if block is not None else 1))
            out.append(count)
        return tuple(out)


@dataclass(frozen=True)
class Kernel:
    """One @triton.jit function.

    name: of the function. source: its text, decorator included. pointers and sizes: its parameters in order, tensors
    first; a size is a symbol of the module. constants: constexpr parameters and their defaults. grid: see `Grid`.
    options: num_warps, num_stages. choices: constants and options worth trying, for tuning.
    """

    name: str
    source: str
    pointers: tuple[Pointer, ...]
    sizes: tuple[str, ...]
    constants: Mapping[str, int]
    grid: Grid
    options: Mapping[str, int] = field(default_factory=lambda: {"num_warps": 4})
    choices: tuple[Mapping[str, int], ...] = ()

    def needs(self, *roles: str) -> tuple[Pointer, ...]:
        """The pointers in some roles."""
        return tuple(p for p in self.pointers if p.role in roles)

    def renamed(self, name: str) -> Kernel:
        """The same kernel under another name."""
        return replace(self, name=name, source=self.source.replace(f"def {self.name}(", f"def {name}(", 1))

    def overlapped(self) -> Kernel:
        """The same kernel, whose programs start while those of the kernel before it end, and wait there before they read anything
        (programmatic dependent launch: CUDA C++ Programming Guide, from compute capability 9.0 on)."""
        head, mark, body = self.source.partition("):\n")
        return replace(self, source=f"{head}{mark}    device.overlap()\n{body}", options={**self.options, "launch_pdl": True})

    @property
    def signature(self) -> dict[str, str]:
        """The parameters that are no constexprs, as Triton's compiler wants them (sizes as i32)."""
        return {p.name: f"*{p.type}" for p in self.pointers} | dict.fromkeys(self.sizes, "i32")


@dataclass(frozen=True)
class Temp:
    """Memory that one kernel of a group writes and another reads. dtype: as tensors have it."""

    dims: tuple[Dim, ...]
    dtype: DType


@dataclass(frozen=True)
class Variant:
    """One way to compute a group: kernels in order, and the memory between them. upto: it is meant for sizes where each of
    these dims is no greater than its number."""

    kernels: tuple[Kernel, ...]
    temps: tuple[Temp, ...] = ()
    upto: tuple[tuple[Dim, int], ...] = ()

    def fits(self, sizes: Mapping[str, int]) -> bool:
        return all(evaluate(dim, sizes) <= most for dim, most in self.upto)


def function(name: str, *, header: str, pointers: tuple[Pointer, ...], sizes: tuple[str, ...], constants: Mapping[str, int],
             body: list[str]) -> str:
    """The source of a kernel: the comment above it, the signature, the body."""
    comment = [f"# {line}" if line else "#" for line in header.splitlines()]
    parameters = [*(p.name for p in pointers), *sizes, *(f"{c}: tl.constexpr" for c in constants)]
    head = f"def {name}({', '.join(parameters)}):"
    if len(head) > 120:
        head = f"def {name}(\n    " + ",\n    ".join(parameters) + ",\n):"
    return "\n".join([*comment, "@triton.jit", head, *body, ""])
