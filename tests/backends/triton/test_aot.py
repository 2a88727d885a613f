"""Kernels compiled for chips that are not there: no spills, shared memory within limits, on Ampere, Hopper and Blackwell."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from ingot.backends.triton.aot import SHARED_BYTES, Compiled, compiled
from ingot.backends.triton.groups import partition
from ingot.backends.triton.kernel import Grid, Kernel, Pointer
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.paging import PAGE, pageable
from ingot.backends.triton.warmup import compile_launch, launches
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.ir.weights import ArrayWeight
from ingot.passes.pipeline import parse_pipeline, run_pipeline
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


def test_pages_are_looked_up_once_a_block() -> None:
    """Not once for every key of it: a block of keys lies in one page."""
    func = example("llama_layer").main
    for chip in (80, 90, 100):
        one, paged = (next(compiled(k, chip) for g in partition(func, paged=pages) for v in g.variants for k in v.kernels
                           if k.name == "attention_kernel_split") for pages in ({}, pageable(func, PAGE)))
        assert paged.fits, paged
        assert sum(paged.loads.values()) <= sum(one.loads.values()) + 2


def test_a_kernel_that_overlaps_waits_first() -> None:
    """Before anything else is done, and only it differs."""
    kernel = ALL["llama_layer"]["linear_silu_mul_kernel_row"]
    lines, more = kernel.source.splitlines(), kernel.overlapped().source.splitlines()
    (at,) = [i for i, line in enumerate(more) if line == "    device.overlap()"]
    assert more[:at] + more[at + 1:] == lines
    assert lines[at - 1] == "):"
    assert compiled(kernel.overlapped(), 90).fits


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


PROJECTION = """
module @projection {{
  dim B in 1..64
  const @w : bf16[{n}, {k}] = memory()
  const @p : u4[{n}, {k}] = memory()
  const @s : f32[{n}, {g}] = memory()
  func @forward(%x: bf16[B, {k}], %r: bf16[B, {n}]) -> (bf16[B, {n}], bf16[B, {n}]) {{
    %y = linear(%x, @w) : bf16[B, {n}]
    %a = add(%y, %r) : bf16[B, {n}]
    %d = dequantize(@p, @s) {{format = "int4", group = 128, dtype = bf16}} : bf16[{n}, {k}]
    %q = linear(%x, %d) : bf16[B, {n}]
    return %a, %q
  }}
}}
"""


@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 4096), (4096, 14336), (2048, 8192)])
@pytest.mark.parametrize("rows", [1, 2, 16, 64])
def test_few_rows_keep_a_large_chip_at_work(shape: tuple[int, int], rows: int) -> None:
    """The projections of decoders with 8 and 1 billion parameters, on a chip of 132 processors."""
    module = parse_module(PROJECTION.format(n=shape[0], k=shape[1], g=shape[1] // 128))
    for group in partition(module.main):
        kernel = next(v for v in group.variants if v.fits({"B": rows})).kernels[0]
        grid = kernel.grid.size({"B": rows}, kernel.constants)
        assert math.prod(grid) >= 250, (kernel.name, grid)


@pytest.mark.parametrize("place", [0, 1])
def test_products_that_share_the_depth_compile(place: int) -> None:
    group = partition(parse_module(PROJECTION.format(n=4096, k=4096, g=32)).main)[place]
    for kernel in next(v for v in group.variants if v.fits({"B": 16})).kernels:
        assert compiled(kernel, 90).fits


@pytest.mark.parametrize("place", [0, 1])
def test_weights_are_read_sixteen_bytes_at_a_time(place: int) -> None:
    """A product with one row waits for memory: besides the weight it reads a step for every 16 bytes, and x once for all rows."""
    group = partition(parse_module(PROJECTION.format(n=4096, k=4096, g=32)).main)[place]
    kernel = next(v for v in group.variants if v.fits({"B": 1})).kernels[0]
    loads = compiled(kernel, 90).loads
    assert loads[16] >= 4
    assert sum(n for width, n in loads.items() if width < 8) <= loads[16]
    assert loads.get(8, 0) <= loads[16]


CODED = """
module @coded {{
  dim M in 1..4096
  const @w : {w}[4096, 4096] = memory()
  const @s : f32[4096, 1] = memory()
  func @forward(%c: {c}[M, 4096], %step: f32[M, 1]) -> (bf16[M, 4096]) {{
    %f = cast(%c) {{dtype = f32}} : f32[M, 4096]
    %x = mul(%f, %step) : f32[M, 4096]
    %d = dequantize(@w, @s) {{format = "{format}", group = 4096}} : f32[4096, 4096]
    %y = linear(%x, %d) : f32[M, 4096]
    %o = cast(%y) {{dtype = bf16}} : bf16[M, 4096]
    return %o
  }}
}}
"""


@pytest.mark.parametrize(("kind", "chip", "rows", "wanted"), [
    ("fp8-e4m3", 90, 512, r"wgmma\.\S+\.e4m3\.e4m3"), ("int8", 90, 512, r"wgmma\.\S+\.s8\.s8"),
    ("fp8-e4m3", 100, 512, r"tcgen05\.mma\.\S+kind::f8f6f4"), ("fp8-e4m3", 89, 16, r"mma\.sync\S+\.e4m3\.e4m3"),
    ("int8", 80, 16, r"mma\.sync\S+\.s8\.s8")])
def test_codes_are_multiplied_by_tensor_cores(kind: str, chip: int, rows: int, wanted: str) -> None:
    """As 8-bit numbers: where floats were, the rate would be half. (In tiles of 16 rows Triton widens small floats on Hopper.)"""
    weight, codes = {"int8": ("u8", "i8"), "fp8-e4m3": ("f8e4m3", "f8e4m3")}[kind]
    (group,) = partition(parse_module(CODED.format(w=weight, c=codes, format=kind)).main)
    result = compiled(next(v for v in group.variants if v.fits({"M": rows})).kernels[-1 if rows > 16 else 0], chip)
    assert result.fits, result
    assert result.products, result
    assert all(re.match(wanted, product) for product in result.products), result


ENCODED = """
module @encoded {
  dim M in 1..4096
  const @w : bf16[512, 512] = memory()
  func @forward(%x: bf16[M, 512]) -> (bf16[M, 512]) {
    %n = rms_norm(%x) : bf16[M, 512]
    %y = linear(%n, @w) : bf16[M, 512]
    return %y
  }
}
"""


def encoded(pipeline: str) -> Module:
    """A norm and a linear, quantised."""
    module = parse_module(ENCODED)
    w = np.random.default_rng(0).normal(size=(512, 512))
    module.consts["w"].weight = ArrayWeight(w.astype(module.consts["w"].type.dtype.numpy))
    run_pipeline(module, parse_pipeline(pipeline))
    return module


def test_inputs_that_the_pass_codes_are_multiplied_as_codes() -> None:
    norm, product = partition(encoded("quantize{format=fp8-e4m3 group=0},quantize-inputs{format=fp8-e4m3}").main)
    assert compiled(norm.variants[0].kernels[0], 90).fits
    result = compiled(product.variants[-1].kernels[-1], 90)
    assert result.fits, result
    assert result.products, result
    assert all(re.match(r"wgmma\.\S+\.e4m3\.e4m3", p) for p in result.products), result


SCALED = """
module @scaled {
  dim M in 1..4096
  const @w : f4e2m1[4096, 4096] = memory()
  const @s : f8e8m0[4096, 128] = memory()
  func @forward(%c: f8e4m3[M, 128, 32], %p: f8e8m0[M, 128, 1]) -> (bf16[M, COLUMNS]) {
    %f = cast(%c) {dtype = f32} : f32[M, 128, 32]
    %q = cast(%p) {dtype = f32} : f32[M, 128, 1]
    %t = mul(%f, %q) : f32[M, 128, 32]
    %h = cast(%t) {dtype = bf16} : bf16[M, 128, 32]
    %x = reshape(%h) {shape = [M, 4096]} : bf16[M, 4096]
    %d = dequantize(@w, @s) {format = "mxfp4", group = 32, dtype = bf16} : bf16[4096, 4096]
    %y = linear(%x, %d) : bf16[M, 4096]
REST    return %o
  }
}
"""
BEHIND = {4096: "    %o = relu(%y) : bf16[M, 4096]\n",
          2048: """    %g, %u = split(%y) {axis = 1, sizes = [2048, 2048]} : bf16[M, 2048], bf16[M, 2048]
    %a = silu(%g) : bf16[M, 2048]
    %o = mul(%a, %u) : bf16[M, 2048]
"""}


@pytest.mark.parametrize("columns", BEHIND)
@pytest.mark.parametrize(("chip", "wanted"), [
    (89, r"mma\.sync\S+\.bf16\.bf16"), (90, r"wgmma\.\S+\.bf16\.bf16"), (100, r"tcgen05\.mma\.\S+kind::mxf8f6f4\.block_scale")])
def test_codes_under_powers_of_two_are_multiplied_by_tensor_cores(columns: int, chip: int, wanted: str) -> None:
    """With them on Blackwell; elsewhere they are decoded to bf16 on the way."""
    (group,) = partition(parse_module(SCALED.replace("REST", BEHIND[columns]).replace("COLUMNS", str(columns))).main)
    repack, product = (compiled(k, chip) for k in next(v for v in group.variants if v.fits({"M": 512})).kernels)
    assert repack.fits, repack
    assert product.fits, product
    assert product.products, product
    assert all(re.match(wanted, p) for p in product.products), product


def test_blocks_that_the_pass_codes_compile() -> None:
    groups = partition(encoded("quantize{format=mxfp4},quantize-inputs{format=mxfp8}").main)
    for kernel in [g.variants[0].kernels[0] for g in groups[:-1]] + [k for v in groups[-1].variants for k in v.kernels]:
        assert compiled(kernel, 90).fits, kernel.name
    assert groups[-1].variants[-1].kernels[-1].name.endswith("_scaled")


@pytest.mark.usefixtures("hopper")
def test_powers_of_two_are_bytes_to_what_is_started() -> None:
    module = TritonModule(encoded("quantize{format=mxfp4},quantize-inputs{format=mxfp8}"), device="meta")
    norm, codes, repack, product = launches(module, [torch.empty((300, 512), dtype=torch.bfloat16, device="meta")])
    assert codes.dtypes[1:] == (torch.uint8, torch.float8_e4m3fn)
    assert [compile_launch(found) for found in (norm, codes, repack, product)] == [""] * 4
