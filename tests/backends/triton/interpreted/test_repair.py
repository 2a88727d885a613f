"""Without its repair the interpreter is wrong in bf16 and fp8, and these tests would say so."""

from __future__ import annotations

import math
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from ingot.backends.triton.launch import PREAMBLE, loaded

UNREPAIRED = dict(vars(InterpreterBuilder))
"""As Triton has it: this module is imported before any test runs."""

KERNELS = loaded(PREAMBLE + '''
@triton.jit
def add(x, y, z):
    i = tl.arange(0, 16)
    tl.store(z + i, tl.load(x + i) + tl.load(y + i))

@triton.jit
def narrow(x, z):
    i = tl.arange(0, 16)
    tl.store(z + i, tl.load(x + i).to(z.dtype.element_ty))

@triton.jit
def dot(x, y, z):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(z + at, tl.dot(tl.load(x + at), tl.load(y + at), out_dtype=tl.float32))

@triton.jit
def dot_scaled(x, x_scale, y, y_scale, z, X: tl.constexpr, Y: tl.constexpr, X_PER: tl.constexpr, Y_PER: tl.constexpr,
               SHARE: tl.constexpr):
    i = tl.arange(0, 16)
    across, down, shares = tl.arange(0, 64 // X_PER), tl.arange(0, 64 // Y_PER), tl.arange(0, 64 // SHARE)
    left = tl.load(x + i[:, None] * (64 // X_PER) + across[None, :])
    right = tl.load(y + i[None, :] * (64 // Y_PER) + down[:, None])
    left_scale = tl.load(x_scale + i[:, None] * (64 // SHARE) + shares[None, :])
    right_scale = tl.load(y_scale + i[:, None] * (64 // SHARE) + shares[None, :])
    tl.store(z + i[:, None] * 16 + i[None, :], tl.dot_scaled(left, left_scale, X, right, right_scale, Y))

@triton.jit
def count(z, n):
    total = 0
    for k in range(0, n, 4):
        total += k
    tl.store(z, total)
''')


def run_add() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.randn(16, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    z = torch.empty_like(x)
    KERNELS["add"][(1,)](x, y, z)
    return z, x + y


def run_narrow(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, generator=torch.Generator().manual_seed(2))
    z = torch.empty(16, dtype=dtype)
    KERNELS["narrow"][(1,)](x, z)
    return z, x.to(dtype)


def run_dot() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.randn(16, 16, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (3, 4))
    z = torch.empty(16, 16)
    KERNELS["dot"][(1,)](x, y, z)
    return z, x.float() @ y.float()


def run_dot_scaled(left: str, right: str, scale: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in e4m3, or in e2m1 two to a byte, under a scale for every 32, or 16 where scales are e4m3."""
    rng = np.random.default_rng(5)
    share = 32 if scale == torch.uint8 else 16
    given: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for kind in (left, right):
        codes = (3 * rng.normal(size=(16, 64))).astype(ml_dtypes.float8_e4m3fn if kind == "e4m3" else ml_dtypes.float4_e2m1fn)
        raw = codes.view(np.uint8)
        raw = raw if kind == "e4m3" else raw[:, ::2] | raw[:, 1::2] << 4
        steps = np.exp2(rng.integers(-3, 4, size=(16, 64 // share))).astype(
            ml_dtypes.float8_e8m0fnu if scale == torch.uint8 else ml_dtypes.float8_e4m3fn)
        given += [torch.from_numpy(raw), torch.from_numpy(steps.view(np.uint8)).view(scale)]
        wanted.append(torch.from_numpy(codes.astype(np.float32) * np.repeat(steps.astype(np.float32), share, 1)))
    z = torch.empty(16, 16)
    names = (tl.constexpr(left), tl.constexpr(right))
    KERNELS["dot_scaled"][(1,)](*given, z, *names, 1 + (left == "e2m1"), 1 + (right == "e2m1"), share)
    return z, wanted[0] @ wanted[1].T


RUNS = {"sum": run_add, "to bf16": lambda: run_narrow(torch.bfloat16), "to e4m3": lambda: run_narrow(torch.float8_e4m3fn),
        "to e5m2": lambda: run_narrow(torch.float8_e5m2), "dot": run_dot,
        "MXFP8 x MXFP4": lambda: run_dot_scaled("e4m3", "e2m1", torch.uint8),
        "MXFP4 x MXFP8": lambda: run_dot_scaled("e2m1", "e4m3", torch.uint8),
        "NVFP4": lambda: run_dot_scaled("e2m1", "e2m1", torch.float8_e4m3fn)}


@pytest.mark.parametrize("name", RUNS)
def test_repaired(name: str) -> None:
    got, wanted = RUNS[name]()
    torch.testing.assert_close(got.float(), wanted.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "parts"), [("sum", ["binary_op"]), ("dot", ["create_dot"]),
                                             ("to bf16", ["cast_impl", "create_fp_trunc", "create_fp_to_fp"])])
def test_the_repair_is_needed(name: str, parts: list[str]) -> None:
    """With the interpreter's own code for one part the result is wrong. When this fails, Triton has mended it."""
    with patch.multiple(InterpreterBuilder, **{n: UNREPAIRED[n] for n in parts}), np.errstate(all="ignore"):
        got, wanted = RUNS[name]()
    assert not torch.allclose(got.float(), wanted.float(), rtol=1e-6, atol=1e-6)


def test_the_repair_of_scaled_products_is_needed() -> None:
    """Triton 3.6 has none; 3.9 takes e4m3 scales for powers of two."""
    own = UNREPAIRED.get("create_dot_scaled")
    with patch.object(InterpreterBuilder, "create_dot_scaled", own), np.errstate(all="ignore"):
        if own is None:
            with pytest.raises(InterpreterError):
                RUNS["NVFP4"]()
            return
        got, wanted = RUNS["NVFP4"]()
    assert not torch.allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_range_takes_bounds_known_at_run_time() -> None:
    z = torch.zeros(1, dtype=torch.int32)
    KERNELS["count"][(1,)](z, 13)
    assert z.item() == 24


def test_rounding_is_to_nearest_even() -> None:
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, math.pi, -1e-40, 3.4e38], np.float32)
    x = torch.from_numpy(np.resize(ties, 16))
    z = torch.empty(16, dtype=torch.bfloat16)
    KERNELS["narrow"][(1,)](x, z)
    assert np.array_equal(z.view(torch.int16).numpy(), x.numpy().astype(ml_dtypes.bfloat16).view(np.int16))
