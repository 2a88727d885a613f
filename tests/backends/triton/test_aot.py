"""Kernels compiled for chips that are not there: no spills, shared memory within limits, on Ampere, Hopper and Blackwell."""

from __future__ import annotations

import pytest

from ingot.backends.triton.aot import SHARED_BYTES, Compiled, compiled
from ingot.backends.triton.groups import partition
from ingot.backends.triton.kernel import Grid, Kernel, Pointer
from tests.backends.triton.examples import example

ALL = {name: {k.name: k for g in partition(example(name).main) for v in g.variants for k in v.kernels}
       for name in ("llama_layer", "int4_layer", "rows_and_moves")}
ON_ALL_CHIPS = [("llama_layer", "linear_kernel"), ("llama_layer", "attention_kernel_split"),
                ("llama_layer", "rope_cache_write_kernel"), ("int4_layer", "linear_silu_mul_kernel_row")]
"""One of each kind; on every chip they take a minute."""
ON_HOPPER = [("llama_layer", "rms_norm_kernel"), ("llama_layer", "linear_silu_mul_kernel_row"),
             ("llama_layer", "linear_silu_mul_kernel"), ("int4_layer", "linear_add_kernel"),
             ("int4_layer", "linear_add_kernel_few"), ("int4_layer", "linear_add_kernel_some"),
             ("int4_layer", "linear_add_kernel_unpack"), ("int4_layer", "linear_add_kernel_many"),
             ("llama_layer", "linear_silu_mul_kernel_some"),
             ("int4_layer", "attention_kernel_join"), ("rows_and_moves", "softmax_kernel"),
             ("rows_and_moves", "layer_norm_gelu_kernel")]


@pytest.mark.parametrize(("module", "kernel", "chip"), [(*k, c) for k in ON_ALL_CHIPS for c in (80, 90, 100)]
                         + [(*k, 90) for k in ON_HOPPER])
def test_compiles_without_spills(module: str, kernel: str, chip: int) -> None:
    result = compiled(ALL[module][kernel], chip)
    assert result.fits, result
    assert result.registers > 0


@pytest.mark.parametrize(("module", "kernel"), [("int4_layer", "linear_silu_mul_kernel_row"),
                                                ("llama_layer", "linear_kernel_row")])
def test_weights_are_read_sixteen_bytes_at_a_time(module: str, kernel: str) -> None:
    """A product with one row waits for memory: besides the weight it reads a step for every 16 bytes, and x once for all rows."""
    loads = compiled(ALL[module][kernel], 90).loads
    assert loads[16] >= 4
    assert sum(n for width, n in loads.items() if width < 8) <= loads[16]
    assert loads.get(8, 0) <= loads[16]


def test_too_much_is_noticed() -> None:
    """A tile too large for the registers spills, one too large for shared memory does not fit."""
    kernel = ALL["llama_layer"]["linear_kernel"]
    spilled = compiled(kernel, 80, settings={"BLOCK_M": 128, "BLOCK_N": 256, "num_warps": 4})
    assert spilled.spilled > 0
    assert not spilled.fits
    assert not Compiled("k", 90, 32, 0, SHARED_BYTES[90] + 1).fits


def test_what_is_compiled_is_the_source() -> None:
    """A kernel that does nothing needs few registers: the numbers are those of this kernel."""
    source = "@triton.jit\ndef k(x_ptr, B, BLOCK: tl.constexpr):\n    tl.store(x_ptr + tl.arange(0, BLOCK), B)\n"
    kernel = Kernel("k", source, (Pointer("x_ptr", "i32"),), ("B",), {"BLOCK": 32}, Grid(((("1", None),),)))  # type: ignore[arg-type]
    assert compiled(kernel, 90).registers < 20
