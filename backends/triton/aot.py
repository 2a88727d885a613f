"""Kernels compiled ahead of time for a chip that need not be there: registers, spills, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingot.backends.triton.kernel import Kernel
from ingot.backends.triton.launch import loaded, sources
from ingot.errors import IngotError

SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Shared memory a block may have, by compute capability (CUDA C++ Programming Guide, table of technical specifications)."""
_PRODUCT = re.compile(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*")
_LOAD = re.compile(r"ld\.global[\w:.]*?\.(?:v(\d)\.)?[bus](\d+)\b")


def capability(arch: str) -> int:
    """The compute capability of an architecture: 90 of `sm_90`. Raises IngotError for one that is not known."""
    number = arch.removeprefix("sm_").removesuffix("a")
    if not number.isdigit() or int(number) not in SHARED_BYTES:
        raise IngotError(f"unknown architecture {arch}", hint=f"known: {', '.join(f'sm_{c}' for c in SHARED_BYTES)}")
    return int(number)


@dataclass(frozen=True)
class Compiled:
    """What a kernel became on one chip. registers: per thread. spilled: bytes per thread that did not fit in them. shared:
    bytes per block. loads: by their width in bytes, how many loads from memory into registers its code has. products: the matrix
    instructions of its PTX."""

    kernel: str
    capability: int
    registers: int
    spilled: int
    shared: int
    loads: Mapping[int, int] = field(default_factory=dict)
    products: frozenset[str] = frozenset()

    @property
    def fits(self) -> bool:
        """No spills, and no more shared memory than the chip has."""
        return not self.spilled and self.shared <= SHARED_BYTES[self.capability]


def compiled(kernel: Kernel, capability: int, *, settings: Mapping[str, int] | None = None,
             sizes: Mapping[str, int] | None = None) -> Compiled:
    """A kernel on an NVIDIA chip of a compute capability (90 for H100), with Triton's own assembler.

    settings: constexprs and options other than the defaults. sizes: what Triton would see at a launch: a size of 1 becomes a
    constant, one that 16 divides is known to be.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ingot.backends.triton.warmup import absent

    given = {**kernel.options, **kernel.constants, **(settings or {})}
    constants = {name: given.pop(name) for name in kernel.constants}
    given_sizes = sizes or {}
    constants |= {name: 1 for name in kernel.sizes if given_sizes.get(name) == 1}
    divisible = [i for i, name in enumerate(kernel.signature) if i < len(kernel.pointers) or not given_sizes.get(name, 1) % 16]
    source = ASTSource(fn=loaded(sources([kernel]))[kernel.name], constexprs=constants,
                       signature=kernel.signature | dict.fromkeys(constants, "constexpr"),
                       attrs={(i,): [["tt.divisibility", 16]] for i in divisible})
    with absent(capability):
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={**given, "enable_fp_fusion": True})
    ptx = str(binary.asm["ptx"])
    registers, spilled = _assembled(ptx, capability)
    widths = Counter(int(many or 1) * int(bits) // 8 for many, bits in _LOAD.findall(ptx))
    return Compiled(kernel.name, capability, registers, spilled, int(binary.metadata.shared), dict(sorted(widths.items())),
                    frozenset(_PRODUCT.findall(ptx)))


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of PTX, as the assembler reports them."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        run = subprocess.run([get_ptxas(capability).path, "-v", f"--gpu-name={sm_arch_from_capability(capability)}", str(file),
                              "-o", f"{folder}/kernel.cubin"], capture_output=True,
                             text=True, check=True)
    registers = re.search(r"Used (\d+) registers", run.stderr)
    spills = re.search(r"(\d+) bytes spill stores", run.stderr)
    return int(registers[1]) if registers else 0, int(spills[1]) if spills else 0
