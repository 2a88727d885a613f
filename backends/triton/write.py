"""From a group of ops to its kernel: which shape of kernel it takes is seen from the ops."""

from __future__ import annotations

import ingot.backends.triton.pull_layout
import ingot.backends.triton.pull_pointwise
import ingot.backends.triton.pull_rope  # noqa: F401  (all register rules of `pulled`)
from ingot.backends.triton.attention import attention_variants
from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.expand import expand
from ingot.backends.triton.flat import flat_kernel
from ingot.backends.triton.kernel import Variant
from ingot.backends.triton.matmul import matmul_variants
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.rows import row_kernel
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.reduce import ArgReduce, Reduce

ANCHORS = (Linear, MatMul, Attention)
MOST_OPS = 64
"""Most ops in one kernel, drawn in ones included: longer ones are read by nobody."""


def write(outlined: Outlined, *, name: str) -> tuple[Variant, ...]:
    """The kernels of an outlined group, whose func it expands. Raises NoKernel when there are none."""
    header = outlined.text
    expand(outlined.func)
    ops = outlined.func.ops
    if len(ops) > MOST_OPS:
        raise NoKernel(f"more than {MOST_OPS} ops")
    anchors = [op for op in ops if isinstance(op, Linear | MatMul | Attention)]
    reductions = [op for op in ops if isinstance(op, Reduce | ArgReduce)]
    if len(anchors) > 1 or (anchors and reductions):
        raise NoKernel("more than one product or reduction")
    for op in anchors:
        if isinstance(op, Attention):
            return attention_variants(outlined, op, name=name, header=header)
        return matmul_variants(outlined, op, name=name, header=header)
    kernel = (row_kernel if reductions else flat_kernel)(outlined, name=name, header=header)
    return (Variant((kernel,)),)


def named(ops: list[Op]) -> str:
    """A kernel's name: the ops it does, in order, each run of equal ones once."""
    words: list[str] = []
    for op in ops:
        word = op.name.replace(".", "_")
        if not words or words[-1] != word:
            words.append(word)
    return "_".join(words if len(words) <= 5 else [*words[:2], "to", words[-1]]) + "_kernel"
