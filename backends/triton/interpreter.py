"""Triton's interpreter, repaired: with TRITON_INTERPRET=1 kernels run on the CPU, but bf16 arithmetic is silently wrong there.

In Triton 3.6 and 3.9 the interpreter holds bf16 and fp8 as integers: casts to bf16 truncate, casts to fp8 round badly, and
sums, products and dots of bf16 are those of the bit patterns. `repaired` lets ml_dtypes do the numbers. It also lets `range`
take bounds known at run time under numpy 2.4, where Triton 3.6 fails, and gives `dot_scaled`, which 3.6 cannot do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np


@contextmanager
def repaired() -> Iterator[None]:
    """Within it, the interpreter rounds to nearest even and computes on the numbers that bf16 and fp8 bits stand for."""
    import triton.language as tl
    from triton.runtime import interpreter as it

    floats = {tl.bfloat16: ml_dtypes.bfloat16, tl.float8e5: ml_dtypes.float8_e5m2, tl.float8e4nv: ml_dtypes.float8_e4m3fn}
    held: Any = it._get_np_dtype

    def numbers(handle: Any) -> np.ndarray:
        kind = floats.get(handle.dtype.scalar)
        return handle.data if kind is None else np.ascontiguousarray(handle.data).view(kind)

    def handle(array: np.ndarray, dtype: Any) -> Any:
        kind = floats.get(dtype.scalar)
        with np.errstate(all="ignore"):
            data = array.astype(held(dtype.scalar)) if kind is None else array.astype(kind).view(held(dtype.scalar))
        return it.TensorHandle(data, dtype.scalar)

    def odd(*handles: Any) -> bool:
        return any(h.dtype.scalar in floats for h in handles)

    def cast(builder: Any, src: Any, dst_type: Any, *_: Any) -> Any:
        values = numbers(src)
        return handle(values.astype(np.float32) if odd(src) else values, dst_type)

    def binary(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(builder: Any, lhs: Any, rhs: Any, op: Any) -> Any:
            if not odd(lhs, rhs):
                return original(builder, lhs, rhs, op)
            result = op(numbers(lhs).astype(np.float32), numbers(rhs).astype(np.float32))
            return it.TensorHandle(result, lhs.dtype.scalar) if result.dtype == np.bool_ else handle(result, lhs.dtype)
        return run

    def dot(builder: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        wide = np.float32 if d.data.dtype == np.float32 else np.float64
        product = np.matmul(numbers(a).astype(wide), numbers(b).astype(wide))
        return handle(product + numbers(d), d.dtype)

    def unscaled(operand: Any, scale: Any, kind: Any, packed: bool) -> np.ndarray:
        """The numbers of one side of `dot_scaled`, its depth last."""
        values = numbers(operand)
        if kind.name == "E2M1":
            pairs = np.stack([values & 15, values >> 4], -1).view(ml_dtypes.float4_e2m1fn)
            values = pairs.reshape(*values.shape[:-1], -1) if packed else np.moveaxis(pairs, -1, -2).reshape(-1, values.shape[-1])
        values = values.astype(np.float32)
        if scale is None:
            return values
        steps = numbers(scale).view(ml_dtypes.float8_e8m0fnu) if scale.dtype.scalar == tl.uint8 else numbers(scale)
        scaled: np.ndarray = values * np.repeat(steps.astype(np.float32), values.shape[-1] // steps.shape[-1], -1)
        return scaled

    def dot_scaled(builder: Any, a: Any, a_scale: Any, a_kind: Any, b: Any, b_scale: Any, b_kind: Any, fast: bool, a_packed: bool,
                   b_packed: bool, d: Any) -> Any:
        turned = it.TensorHandle(np.ascontiguousarray(b.data.T), b.dtype.scalar)
        left, right = unscaled(a, a_scale, a_kind, a_packed), unscaled(turned, b_scale, b_kind, b_packed)
        return handle(np.matmul(left, right.T) + numbers(d), d.dtype)

    def tensor(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(cls: Any, scope: Any) -> None:
            original(cls, scope)
            scope.set_attr(cls, "__index__", lambda self: int(self.handle.data.item()))
        return run

    def inner(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            # Triton would patch its whole language at every call of a device function; the kernel's start has done it.
            ours = function.fn.__globals__.get("tl") is tl
            return (function.rewrite() if ours else partial(original, function))(*args, **kwargs)
        return run

    builder = it.InterpreterBuilder
    # Checks of integer overflow, which is not reported, take half of the time.
    quick = dataclasses.replace(it.interpreter_builder.options, sanitize_overflow=False)
    with ExitStack() as stack, np.errstate(all="ignore"):
        for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc", "fp_to_fp"):
            stack.enter_context(patch.object(builder, f"create_{name}", cast))
        stack.enter_context(patch.object(builder, "cast_impl", cast))
        stack.enter_context(patch.object(builder, "binary_op", binary(builder.binary_op)))
        stack.enter_context(patch.object(builder, "create_dot", dot))
        stack.enter_context(patch.object(builder, "create_dot_scaled", dot_scaled, create=True))
        stack.enter_context(patch.object(it.interpreter_builder, "options", quick))
        stack.enter_context(patch.object(it.InterpretedFunction, "__call__", inner(it.InterpretedFunction.__call__)))
        stack.enter_context(patch.object(it, "_patch_lang_tensor", tensor(it._patch_lang_tensor)))
        yield
