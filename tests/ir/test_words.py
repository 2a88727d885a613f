"""Codes in 32-bit words: what other tools' layouts say about them, and that unpacking gives back what was packed."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.ir.formats.words import AWQ_ORDER, pack_words, unpack_words, words_for


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 8, 31, 32, 40])
def test_words_give_back_the_codes(bits: int, n: int) -> None:
    codes = np.random.default_rng(bits * n).integers(0, 1 << bits, (3, n)).astype(np.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == np.int32
    assert words.shape == (3, words_for(n, bits))
    np.testing.assert_array_equal(unpack_words(words, bits, n), codes)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack_words(np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.uint8), 4).view(np.uint32)[0, 0] == 0x87654321


def test_three_bits_lie_across_words() -> None:
    """GPTQ: ten codes and two bits of the eleventh in the first word, its third bit first in the second."""
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 10] = 0b111
    low, high, last = pack_words(codes, 3).view(np.uint32)[0]
    assert (low, high, last) == (0b11 << 30, 1, 0)


def test_awq_interleaves_even_and_odd_codes() -> None:
    codes = np.arange(8, dtype=np.uint8)[None]
    words = pack_words(codes, 4, order=AWQ_ORDER)
    assert words.view(np.uint32)[0, 0] == 0x75316420
    np.testing.assert_array_equal(unpack_words(words, 4, 8, order=AWQ_ORDER), codes)
