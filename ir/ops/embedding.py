"""Table lookup."""

from __future__ import annotations

from typing import Any

from ingot.ir.op import Op
from ingot.ir.types import TensorType
from ingot.ir.value import Value


class Embedding(Op):
    """Rows of w [vocab, d] picked by ids [...]."""

    name = "embedding"
    axes = "ids[...], w[v! d] -> [... d]"
    ids: Value
    w: Value

    def infer(self) -> TensorType:
        if not self.ids.type.dtype.is_integer or self.w.type.rank != 2:
            raise self.fail("ids must be integers and w [vocab, d]")
        return TensorType(self.w.type.dtype, (*self.ids.type.dims, self.w.type.dims[1]))

    def reference(self, ids: Any, w: Any) -> Any:
        return w[ids]
