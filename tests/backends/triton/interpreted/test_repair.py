"""Without its repair the interpreter is wrong in bf16 and fp8, and these tests would say so."""

from __future__ import annotations

import math
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch
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


RUNS = {"sum": run_add, "to bf16": lambda: run_narrow(torch.bfloat16), "to e4m3": lambda: run_narrow(torch.float8_e4m3fn),
        "to e5m2": lambda: run_narrow(torch.float8_e5m2), "dot": run_dot}


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
