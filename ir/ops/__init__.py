"""The ops, one file per family; importing this package registers them all."""

from ingot.ir.ops import attention, conv, creation, embedding, layout, matmul, norm, pointwise, quant, reduce, rope

__all__ = ["attention", "conv", "creation", "embedding", "layout", "matmul", "norm", "pointwise", "quant", "reduce", "rope"]
