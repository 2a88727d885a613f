"""Shapes and numbers at the edges: sizes 0 and 1, long rows, NaN and infinity, 64-bit indices, strides, a wrong kernel."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from ingot.backends.triton import flat, launch, rows
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.testing import inputs_for
from tests.backends.triton.interpreted.check import agree, changed

NORM = """
module @norm {
  dim B in 0..64
  dim C in 0..64
  func @forward(%x: f32[B, 40], %y: f32[B, 40], %z: f32[B, C]) -> (f32[B, 40], f32[B, 40], f32[B, C], f32[B], i64[B]) {
    %n, %t = skip_rms_norm(%x, %y) : f32[B, 40], f32[B, 40]
    %s = softmax(%z) : f32[B, C]
    %m = sum(%z) {axis = [1]} : f32[B]
    %a = argmax(%t) : i64[B]
    return %n, %t, %s, %m, %a
  }
}
"""
MOVE = """
module @move {
  dim S in 0..64
  func @forward(%x: f32[S, 6, 4], %pos: i64[3]) -> (f32[4, S, 6], f32[6, 3, 4], f32[S, 7], bf16[S, 24]) {
    %t = transpose(%x) {perm = [2, 0, 1]} : f32[4, S, 6]
    %u = neg(%t) : f32[4, S, 6]
    %p = take(%x, %pos) : f32[3, 6, 4]
    %q = transpose(%p) {perm = [1, 0, 2]} : f32[6, 3, 4]
    %e = exp(%q) : f32[6, 3, 4]
    %a = slice(%x) {axis = 2, start = 1, stop = 2} : f32[S, 6, 1]
    %b = reshape(%a) {shape = [S, 6]} : f32[S, 6]
    %d = pad(%b) {pads = [0, 0, 1, 0], value = 2.5} : f32[S, 7]
    %r = reshape(%x) {shape = [S, 24]} : f32[S, 24]
    %c = cast(%r) {dtype = bf16} : bf16[S, 24]
    return %u, %e, %d, %c
  }
}
"""


def inputs(module: Module, **sizes: int) -> list[np.ndarray]:
    arrays = inputs_for(module, np.random.default_rng(0), sizes)
    return list(arrays.values())


@pytest.mark.parametrize("sizes", [(0, 5), (1, 1), (3, 33), (17, 2)])
def test_rows_of_any_number_and_length(sizes: tuple[int, int]) -> None:
    module = parse_module(NORM)
    agree(module, inputs(module, B=sizes[0], C=sizes[1]), limit=1e-5)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_moves(size: int) -> None:
    module = parse_module(MOVE)
    x = np.random.default_rng(1).normal(size=(size, 6, 4)).astype(np.float32)
    agree(module, [x, np.array([0, -1, size - 1])], limit=1e-2)


@pytest.mark.parametrize(("text", "longest"), [(NORM, 8), (NORM, 8192)])
def test_rows_whole_and_in_blocks(text: str, longest: int) -> None:
    module = parse_module(text)
    with patch.object(rows, "LONGEST", longest), patch.object(rows, "STEP", 16):
        agree(module, inputs(module, B=5, C=33), limit=1e-5)


def test_small_blocks() -> None:
    module = parse_module(MOVE)
    with patch.object(flat, "BLOCK", 16):
        agree(module, [np.random.default_rng(1).normal(size=(7, 6, 4)).astype(np.float32), np.array([0, 2, 6])], limit=1e-2)


def test_64_bit_indices() -> None:
    for text in (NORM, MOVE):
        module = parse_module(text)
        with patch.object(launch, "MOST", -1):
            agree(module, inputs(module, **{name: 3 for name in module.dims}), limit=1e-2)


def test_not_finite_numbers_stay_where_they_are() -> None:
    module = parse_module(NORM)
    x, y, z = inputs(module, B=6, C=9)
    z[0, 3], z[1, 2], z[2, 8] = np.nan, -np.inf, np.inf
    x[4, 7] = np.nan
    agree(module, [x, y, z], limit=1e-5)


MISTAKES = {"another count": (" / 40", " / 41"), "a column forgotten": ("col_inside = col < 40", "col_inside = col < 39"),
            "a sum for a product": (" * scale", " + scale"),
            "rows skipped": ("program(0, WIDE) * ROWS", "program(0, WIDE) * (ROWS - 1)")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_kernel_is_noticed(name: str) -> None:
    module = parse_module(NORM)
    with changed(*MISTAKES[name]), pytest.raises(AssertionError, match="is off by"):
        agree(module, inputs(module, B=17, C=5), limit=1e-5)
