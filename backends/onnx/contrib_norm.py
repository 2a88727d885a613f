"""A residual sum and the normalisation after it in one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.ops.norm import SkipLayerNorm, SkipRmsNorm
from ingot.ir.types import f32

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(SkipRmsNorm, contrib=True)
def skip_rms_norm(op: SkipRmsNorm, lo: Lowering) -> tuple[str, str]:
    weight = _weight(op, lo)
    out = lo.emit_many("SkipSimplifiedLayerNormalization", lo(op.x), lo(op.skip), weight, n_out=4, domain=CONTRIB_DOMAIN,
                       epsilon=op.eps)
    return out[0], out[3]


@rule(SkipLayerNorm, contrib=True)
def skip_layer_norm(op: SkipLayerNorm, lo: Lowering) -> tuple[str, str]:
    bias = lo(op.bias) if op.bias is not None else None
    out = lo.emit_many("SkipLayerNormalization", lo(op.x), lo(op.skip), _weight(op, lo), bias, n_out=4, domain=CONTRIB_DOMAIN,
                       epsilon=op.eps)
    return out[0], out[3]


def _weight(op: SkipRmsNorm | SkipLayerNorm, lo: Lowering) -> str:
    width = op.x.type.dims[-1]
    if op.x.type.dtype != f32 or op.x.type.rank != 3 or not isinstance(width, int):
        raise Decline("the kernel is for f32 [batch, sequence, width]")
    return lo(op.w) if op.w is not None else lo.const(np.ones(width, np.float32))
