"""Scalar expressions: an elementwise op is written once, over a namespace `o` of primitives.

`silu` is `x * o.sigmoid(x)`; each backend supplies its own `o` (numpy here, torch, ONNX values, Triton source), and the
arithmetic operators of whatever stands for a value do the rest.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np


class Primitives(Protocol):
    """What an elementwise op may use besides + - * / and comparisons; values are whatever the backend computes on."""

    def exp(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def rsqrt(self, x: Any) -> Any: ...
    def sin(self, x: Any) -> Any: ...
    def cos(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def erf(self, x: Any) -> Any: ...
    def sigmoid(self, x: Any) -> Any: ...
    def softplus(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def sign(self, x: Any) -> Any: ...
    def floor(self, x: Any) -> Any: ...
    def ceil(self, x: Any) -> Any: ...
    def round(self, x: Any) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def pow(self, x: Any, y: Any) -> Any: ...
    def where(self, c: Any, x: Any, y: Any) -> Any: ...
    def logical_not(self, x: Any) -> Any: ...
    def logical_and(self, x: Any, y: Any) -> Any: ...
    def logical_or(self, x: Any, y: Any) -> Any: ...
    def floordiv(self, x: Any, y: Any) -> Any: ...
    def mod(self, x: Any, y: Any) -> Any: ...
    def isnan(self, x: Any) -> Any: ...


def _numpy_erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


class NumpyPrimitives:
    """The reference meaning of every primitive."""

    exp = staticmethod(np.exp)
    log = staticmethod(np.log)
    sqrt = staticmethod(np.sqrt)
    sin = staticmethod(np.sin)
    cos = staticmethod(np.cos)
    tanh = staticmethod(np.tanh)
    abs = staticmethod(np.abs)
    sign = staticmethod(np.sign)
    floor = staticmethod(np.floor)
    ceil = staticmethod(np.ceil)
    round = staticmethod(np.round)
    maximum = staticmethod(np.maximum)
    minimum = staticmethod(np.minimum)
    where = staticmethod(np.where)
    logical_not = staticmethod(np.logical_not)
    logical_and = staticmethod(np.logical_and)
    logical_or = staticmethod(np.logical_or)
    floordiv = staticmethod(np.floor_divide)
    mod = staticmethod(np.mod)
    isnan = staticmethod(np.isnan)
    erf = staticmethod(_numpy_erf)

    @staticmethod
    def pow(x: Any, y: Any) -> Any:
        return np.power(x, y)

    @staticmethod
    def rsqrt(x: Any) -> Any:
        return 1 / np.sqrt(x)

    @staticmethod
    def sigmoid(x: Any) -> Any:
        e = np.exp(-np.abs(x))
        return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)

    @staticmethod
    def softplus(x: Any) -> Any:
        return np.logaddexp(x, np.zeros((), x.dtype))


NUMPY = NumpyPrimitives()
