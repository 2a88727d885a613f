"""Flat kernels: every program computes one block of elements, one after the other in memory."""

from __future__ import annotations

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.index import unflattened
from ingot.backends.triton.kernel import Grid, Kernel, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.roots import opened

BLOCK = 1024


def flat_kernel(outlined: Outlined, *, name: str, header: str) -> Kernel:
    """The kernel of elementwise ops, layout and lookup; all outputs have the same number of elements.

    Raises NoKernel where an op needs another shape of kernel.
    """
    made = opened(outlined)
    pull, source = made.pull, made.pull.source
    total = made.roots[0].computed.type.size
    if any(root.computed.type.size != total for root in made.roots):
        raise NoKernel("the outputs differ in size")
    n, inside = source.names.take("n"), source.names.take("inside")
    source.line(f"{n} = device.program(0, WIDE) * BLOCK + tl.arange(0, BLOCK)")
    at = pull.axis("n", n, total, inside)
    source.line(f"{inside} = {n} < {pull.dim(total).text}")
    for root in made.roots:
        made.store(root, unflattened(at, root.computed.type.dims, pull.bounds))
    body = source.lines()
    pointers, sizes = made.pointers("\n".join(body)), tuple(pull.sizes)
    constants = {"BLOCK": BLOCK, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    return Kernel(name, text, pointers, sizes, constants, Grid((((total, "BLOCK"),),)),
                  choices=({"BLOCK": 512}, {"BLOCK": 2048, "num_warps": 8}))


def widening(sizes: tuple[str, ...]) -> list[str]:
    """Lines that make products of sizes 64 bits wide where a tensor needs it."""
    if not sizes:
        return []
    return ["    if WIDE:", *(f"        {s} = tl.cast({s}, tl.int64)" for s in sizes)]
