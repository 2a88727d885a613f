"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.errors import IRError
from ingot.ir.op import Op
from ingot.ir.types import TensorType, bool_, broadcast, promote
from ingot.ir.value import Value


class Linear(Op):
    """x @ w.T + bias: x [..., in], w [out, in], bias [out]."""

    name = "linear"
    axes = "x[... i], w[o i], bias[o] -> [... o]"
    x: Value
    w: Value
    bias: Value | None = None

    def infer(self) -> TensorType:
        if self.w.type.rank != 2 or not self.x.type.rank or self.x.type.dims[-1] != self.w.type.dims[1]:
            raise self.fail("x ends in `in` features and w must be [out, in]")
        if self.x.type.dtype == bool_ or self.w.type.dtype == bool_:
            raise self.fail("takes numbers; cast first")
        out = self.w.type.dims[0]
        if self.bias is not None and self.bias.type.dims != (out,):
            raise self.fail(f"bias must be [{out}]")
        return TensorType(promote(self.x.type, self.w.type), (*self.x.type.dims[:-1], out))

    def reference(self, x: Any, w: Any, bias: Any) -> Any:
        y = x @ w.T
        return y if bias is None else y + bias


class MatMul(Op):
    """Batched matrix product of tensors of rank >= 2: [..., m, k] @ [..., k, n], leading axes broadcast."""

    name = "matmul"
    axes = "x[... m k], y[... k n] -> [... m n]"
    x: Value
    y: Value

    def infer(self) -> TensorType:
        a, b = self.x.type.dims, self.y.type.dims
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            raise self.fail("the last axis of x must agree with the last but one of y")
        if self.x.type.dtype == bool_ or self.y.type.dtype == bool_:
            raise self.fail("takes numbers; cast first")
        try:
            lead = broadcast(a[:-2], b[:-2])
        except IRError as error:
            raise self.fail(error.message) from None
        return TensorType(promote(self.x.type, self.y.type), (*lead, a[-2], b[-1]))

    def reference(self, x: Any, y: Any) -> Any:
        return np.matmul(x, y)
