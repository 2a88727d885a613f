"""Products and attention in all their forms: one row, few, many; split over keys or not; weights in codes; epilogues."""

from __future__ import annotations

from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest

from ingot.backends.triton import attention, matmul, split
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.packing import block_size, stored_bits, words
from ingot.ir.dims import sym
from ingot.ir.formats import FORMATS, format_named
from ingot.ir.module import Builder, Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text import parse_module
from ingot.ir.types import TensorType, bf16, f32
from ingot.ir.weights import ArrayWeight
from ingot.testing import inputs_for
from tests.backends.op_cases import CASES, OpCase
from tests.backends.triton.interpreted.check import agree, changed

GATED = """
module @gated {{
  dim M in 1..200
  func @forward(%x: {t}[M, {k}], %w: {t}[96, {k}], %b: {t}[96], %r: {t}[M, 48]) -> ({t}[M, 48], {t}[M, 48]) {{
    %y = linear(%x, %w, bias=%b) : {t}[M, 96]
    %g, %u = split(%y) {{sizes = [48, 48]}} : {t}[M, 48], {t}[M, 48]
    %s = silu(%g) : {t}[M, 48]
    %m = mul(%s, %u) : {t}[M, 48]
    %o = add(%m, %r) : {t}[M, 48]
    return %m, %o
  }}
}}
"""


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_a_gated_mlp_is_one_group(kind: str, rows: int) -> None:
    gated(kind, rows, 40)


def gated(kind: str, rows: int, depth: int) -> None:
    module = parse_module(GATED.format(t=kind, k=depth))
    small = {k: np.asarray(v * 0.3, v.dtype) for k, v in inputs_for(module, np.random.default_rng(rows), {"M": rows}).items()}
    compiled = agree(module, list(small.values()), limit={"f32": 1e-5, "f16": 4e-3, "bf16": 3e-2}[kind])
    assert len(compiled.steps) == 1
    assert ("_few_split(" in compiled.source) == (depth > 40)


def quantized(name: str, rows: int, columns: int, *, group: int, kind: str = "f32") -> Module:
    """x [M, columns] times a random weight in a format."""
    rng = np.random.default_rng(0)
    fmt = format_named(name)
    w = rng.normal(size=(rows, columns)).astype(np.float32)
    module = Module("quantized")
    module.set_dim("M", 1, 64)
    b = Builder(module.add_func("forward"))
    dtype = bf16 if kind == "bf16" else f32
    x = b.func.add_param("x", TensorType(dtype, (sym("M"), columns)))
    padded = np.pad(w, ((0, 0), (0, -columns % group))).reshape(rows, -1, group)
    top = fmt.tensor_scale(w)
    step, zero = fmt.parameters(padded, symmetric=name != "int4", tensor_scale=top)
    codes = fmt.encode(padded, step[..., None], None if zero is None else zero[..., None])
    scales = fmt.settle(step, zero, top)
    types = fmt.types((rows, columns), group, symmetric=name != "int4")
    arrays = {"packed": codes.reshape(rows, -1)[:, :columns], **scales.parts}
    parts = {p: b.const(f"w.{p}", ArrayWeight(a.copy(), dtype=types[p].dtype)) for p, a in arrays.items()}
    y = b(Linear(x, b(Dequantize(**parts, format=name, group=group, dtype=dtype))))
    b.func.set_returns([y])
    return module


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_weights_in_every_format(name: str, rows: int) -> None:
    module = quantized(name, 20, 96, group=format_named(name).group or 96)
    x = np.random.default_rng(1).normal(size=(rows, 96)).astype(np.float32)
    compiled = agree(module, [x], limit=2e-5)
    assert "words_ptr" in compiled.source
    assert not compiled.fallbacks


@pytest.mark.parametrize(("columns", "group"), [(72, 32), (40, 8), (128, 128)])
@pytest.mark.parametrize("rows", [1, 5])
def test_groups_of_any_size_and_a_short_last_one(columns: int, group: int, rows: int) -> None:
    module = quantized("int4", 9, columns, group=group, kind="bf16")
    x = np.random.default_rng(1).normal(size=(rows, columns)).astype(ml_dtypes.bfloat16)
    agree(module, [x], limit=3e-2)


@pytest.mark.parametrize(("name", "mistake"), [("nvfp4", (", 0, 4, 3)", ", 0, 5, 2)")), ("mxfp4", ("device.exponent(", "(")),
                                               ("nvfp4", (" * tensor", "")), ("int4", ("device.unshifted(code, 4)", "1.0"))])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_decoded_wrongly_is_noticed(name: str, mistake: tuple[str, str], rows: int) -> None:
    with changed(*mistake), pytest.raises(AssertionError, match="is off by"):
        test_weights_in_every_format(name, rows)


def test_steps_of_one_byte_stay_bytes() -> None:
    """4 codes to 2 bytes and a step of one byte for 16: 4.5 bits a weight are read, as are stored."""
    compiled = TritonModule(quantized("nvfp4", 20, 96, group=16), device="cpu")
    agree(compiled.module, [np.ones((1, 96), np.float32)], limit=2e-5, compiled=compiled)
    # Six groups a row take two words; one f32 scales all.
    assert compiled.uploads.nbytes == 20 * (96 // 2 + 8) + 4


def test_blocks_of_several_groups_fill_four_words() -> None:
    assert [block_size("nvfp4", 16), block_size("int4", 128), block_size("int2", 16), block_size("int4", 24)] == [32, 128, 64, 24]


def test_words_hold_codes_of_one_group_in_runs() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64) % 16
    packed = words(codes, "int4", 32).view(np.uint32)[0]
    assert [(int(packed[1]) >> 4 * s) & 15 for s in range(8)] == [(s * 4 + 1) % 16 for s in range(8)]
    assert stored_bits("int3") == 4


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "attention"], ids=lambda c: c.name.replace(" ", "_"))
def test_attention_in_one_pass(case: OpCase) -> None:
    """The form for many queries, which small shapes would not take."""
    made = case.make()
    with patch.object(attention, "SPLIT_ROWS", 0):
        compiled = TritonModule(made.module, device="cpu")
    for sizes in case.sizes:
        agree(made.module, made.inputs(sizes), op="attention", compiled=compiled)


DECODE = """
module @decode {{
  dim B in 1..4
  dim S in 1..64
  dim T in 1..512
  func @forward(%q: bf16[B, 6, S, 16], %pos: i64[B, S], %kc: i8[B, 2, T, 16], %vc: i8[B, 2, T, 16], %f: f32[8],
                %ks: f32[2, 1, 16]) -> (bf16[B, 6, S, 16]) {{
    %r = rope(%q, %pos, %f) : bf16[B, 6, S, 16]
    %kf = cast(%kc) {{dtype = f32}} : f32[B, 2, T, 16]
    %k = mul(%kf, %ks) : f32[B, 2, T, 16]
    %vf = cast(%vc) {{dtype = f32}} : f32[B, 2, T, 16]
    %v = mul(%vf, %ks) : f32[B, 2, T, 16]
    %a = attention(%r, %k, %v, pos=%pos) {{scale = 0.25, causal = true{more}}} : bf16[B, 6, S, 16]
    return %a
  }}
}}
"""


@pytest.mark.parametrize("more", ["", ", window = 40", ", softcap = 2.0"])
@pytest.mark.parametrize(("steps", "capacity"), [(1, 200), (3, 70), (40, 64)])
def test_attention_over_a_long_int8_cache_is_one_group(steps: int, capacity: int, more: str) -> None:
    """The cache is decoded and the query turned as they are read."""
    module = parse_module(DECODE.format(more=more))
    rng = np.random.default_rng(steps)
    last = rng.integers(steps - 1, capacity, size=(2, 1))
    pos = last - np.arange(steps)[::-1]
    cache = rng.integers(-127, 128, size=(2, 2, 2, capacity, 16)).astype(np.int8)
    inputs = [rng.normal(size=(2, 6, steps, 16)).astype(ml_dtypes.bfloat16), pos, cache[0], cache[1],
              (1 / 10 ** np.linspace(0, 3, 8)).astype(np.float32), np.full((2, 1, 16), 0.01, np.float32)]
    compiled = agree(module, inputs, limit=3e-2)
    assert [g.variants != () for g in compiled.groups] == [True]


def test_rope_far_from_the_start_is_exact() -> None:
    module = parse_module("""
module @rope {
  func @forward(%x: f32[1, 1, 4, 8], %pos: i64[1, 4], %f: f32[4]) -> (f32[1, 1, 4, 8]) {
    %r = rope(%x, %pos, %f) : f32[1, 1, 4, 8]
    return %r
  }
}
""")
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 8)).astype(np.float32)
    # Powers of two: products with the positions are exact in f32, so that what is left is the error of sine and cosine.
    frequencies = np.array([1, 0.5, 0.125, 2**-10], np.float32)
    agree(module, [x, np.array([[0, 1023, 40_000, 100_000]]), frequencies], limit=1e-6)


MISTAKES = {"a part of the keys forgotten": ("range(SPLITS)", "range(1, SPLITS)"),
            "not faded": ("acc * tl.exp(top - base)", "acc"),
            "keys after the query": ("(t <= at)", "(t <= at + 1)"), "a lost step": (" * 0.25", " * 0.2")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_attention_is_noticed(name: str) -> None:
    with changed(*MISTAKES[name]), pytest.raises(AssertionError, match="is off by"):
        test_attention_over_a_long_int8_cache_is_one_group(3, 300, "")


@pytest.mark.parametrize("tiles", [("FEW_ROWS",), ("FEW_ROWS", "SOME_ROWS"), ("FEW_ROWS", "SOME_ROWS", "MANY_ROWS")])
def test_large_tiles_agree_with_small_ones(tiles: tuple[str, ...]) -> None:
    """The last one decodes weights into memory first."""
    with patch.multiple(matmul, **dict.fromkeys(tiles, 1)):
        test_a_gated_mlp_is_one_group("bf16", 33)
        for name in ("int4", "nvfp4", "nf4"):
            test_weights_in_every_format(name, 40)
        test_groups_of_any_size_and_a_short_last_one(72, 32, 5)
        test_groups_of_any_size_and_a_short_last_one(40, 8, 5)


@pytest.mark.parametrize("rows", [2, 33])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_programs_that_share_the_depth(kind: str, rows: int) -> None:
    """Of unequal parts: three tiles by two programs, or five by four."""
    with patch.multiple(split, PROGRAMS=10**6, LEAST=1):
        gated(kind, rows, 290)


@pytest.mark.parametrize(("name", "group"), [("int4", 128), ("nvfp4", 16), ("nf4", 64), ("fp8-e4m3", 128), ("int3", 64)])
def test_programs_that_share_the_depth_of_codes(name: str, group: int) -> None:
    with patch.multiple(split, PROGRAMS=10**6, LEAST=1):
        module = quantized(name, 20, 1152, group=format_named(name).group or group)
        x = np.random.default_rng(1).normal(size=(3, 1152)).astype(np.float32)
        compiled = agree(module, [x], limit=2e-5)
    assert "linear_kernel_few_split" in compiled.source


@pytest.mark.parametrize("mistake", [("split * width", "0 * width"), ("tl.static_range(SPLITS)", "tl.static_range(1, SPLITS)"),
                                     ("(split + 1) * width", "(split + 1) * width - BLOCK_K")])
def test_a_part_lost_is_noticed(mistake: tuple[str, str]) -> None:
    with changed(*mistake), pytest.raises(AssertionError, match="is off by"):
        test_programs_that_share_the_depth("f32", 2)


def test_wide_products_are_not_shared() -> None:
    """Enough tiles, or too little depth: one program each."""
    shapes = ((128, 32), (192, 32), (896, 32), (64, 16), (18, 4), (18, 200))
    assert [split.splits_of(tiles, steps) for tiles, steps in shapes] == [4, 2, 1, 4, 1, 8]
