"""Activations onnxruntime has as one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.ops.pointwise import Gelu, Silu
from ingot.ir.types import f32

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Silu, contrib=True)
def silu(op: Silu, lo: Lowering) -> str:
    """x * sigmoid(x) is QuickGelu with alpha 1."""
    if op.x.type.dtype != f32:
        raise Decline("the kernel is for f32")
    return lo.emit("QuickGelu", lo(op.x), domain=CONTRIB_DOMAIN, alpha=1.0)


@rule(Gelu, contrib=True)
def quick_gelu(op: Gelu, lo: Lowering) -> str:
    """The sigmoid approximation is QuickGelu with its own alpha."""
    if op.approximate != "sigmoid" or op.x.type.dtype != f32:
        raise Decline("not the sigmoid approximation in f32")
    return lo.emit("QuickGelu", lo(op.x), domain=CONTRIB_DOMAIN, alpha=1.702)
