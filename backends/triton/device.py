# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"
"""Device functions that generated kernels call: what Triton's language lacks, or its interpreter cannot run."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1 / (1 + e), tl.where(x < 0, e / (1 + e), x))


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    y = (1 - e) / (1 + e)
    return tl.where(x >= 0, y, tl.where(x < 0, -y, x))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def round_even(x):
    # Adding 1.5 * 2^52 (or 2^23) leaves no room for a fraction: the hardware rounds it off, halves to even.
    if x.dtype == tl.float64:
        big = tl.full((), 6755399441055744.0, tl.float64)
        return tl.where(tl.abs(x) < 2251799813685248.0, (x + big) - big, x)
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def sign(x):
    one = (x > 0).to(x.dtype) - (x < 0).to(x.dtype)
    return tl.where(x == x, one, x)


@triton.jit
def power(x, y):
    y = y + tl.zeros_like(x)
    size = tl.exp(y * tl.log(tl.abs(x)))
    half = y * 0.5
    odd = tl.floor(half) != half
    whole = tl.floor(y) == y
    signed = tl.where(x < 0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return tl.where(y == 0, 1.0, signed).to(x.dtype)


@triton.jit
def floordiv(x, y):
    q = x // y
    return q - ((q * y != x) & ((x < 0) != (y < 0))).to(q.dtype)


@triton.jit
def mod(x, y):
    r = x % y
    return r + tl.where((r != 0) & ((r < 0) != (y < 0)), y, 0)


@triton.jit
def floatmod(x, y):
    r = x - tl.floor(x / y) * y
    return tl.where(tl.abs(r) >= tl.abs(y), tl.zeros_like(r), r)


@triton.jit
def program(axis: tl.constexpr, WIDE: tl.constexpr):
    """The program's number along a grid axis, `wide`."""
    return wide(tl.program_id(axis), WIDE)


@triton.jit
def overlap():
    """Lets the next kernel's programs start, and waits for the kernel before this one."""
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def wide(x, WIDE: tl.constexpr):
    """In 64 bits where a tensor has more elements than 32 bits count."""
    if WIDE:
        x = x.to(tl.int64)
    return x


@triton.jit
def top(x):
    """The greatest of every row, NaN where there is one."""
    nan = tl.max((x != x).to(tl.int32), axis=1, keep_dims=True)
    return tl.where(nan > 0, float("nan"), tl.max(x, axis=1, keep_dims=True)).to(x.dtype)


@triton.jit
def bottom(x):
    nan = tl.max((x != x).to(tl.int32), axis=1, keep_dims=True)
    return tl.where(nan > 0, float("nan"), tl.min(x, axis=1, keep_dims=True)).to(x.dtype)


@triton.jit
def beats(x, best):
    """Whether x comes before `best` in the order of argmax: it is greater, or the first NaN."""
    return (x > best) | ((x != x) & (best == best))


@triton.jit
def first_top(best, index):
    """The least index of those with the greatest value of a row (or of its NaNs)."""
    nan = best != best
    some = tl.max(nan.to(tl.int32), axis=1, keep_dims=True) > 0
    greatest = tl.max(tl.where(nan, float("-inf"), best), axis=1, keep_dims=True)
    return tl.min(tl.where((nan & some) | ((best == greatest) & (some == 0)), index, 2147483647), axis=1, keep_dims=True)


@triton.jit
def held():
    """The bits of 2^23 as a float, in a register: grids have one layer, but only the launch knows. So one instruction takes a
    code out of a word and puts these bits in, which it could not with two constants."""
    return tl.num_programs(2) * 0x4B000000


@triton.jit
def integer(words, zero, bits, PART: tl.constexpr, BITS: tl.constexpr):
    """Code PART of words less `zero`, times 2^shift with shift = PART * BITS mod 16. bits: those of 2^23 as a float.

    The code's bits stay where they are, in the fraction of 2^23: no shift, and no conversion.
    """
    SHIFT: tl.constexpr = PART % (16 // BITS) * BITS
    half = words if PART < 16 // BITS else words >> 16
    found = (half & (((1 << BITS) - 1) << SHIFT)) | bits  # pyright: ignore[reportOperatorIssue]
    return found.to(tl.float32, bitcast=True) - (zero * (1 << SHIFT) + 8388608.0)  # pyright: ignore[reportOperatorIssue]


@triton.jit
def unshifted(PART: tl.constexpr, BITS: tl.constexpr):
    """What `integer` is to be multiplied by."""
    return 1.0 / (1 << (PART % (16 // BITS) * BITS))  # pyright: ignore[reportOperatorIssue]


@triton.jit
def minifloat(words, PART: tl.constexpr, EXPONENT: tl.constexpr, FRACTION: tl.constexpr):
    """Code PART of words, a float of so many exponent and fraction bits below its sign, times 2^(bias - 15).

    Its bits are moved to where a half float has them, in both halves of the words at once; the fewer exponent bits then stand
    for a smaller number. Codes of NaN are taken for numbers.
    """
    BITS: tl.constexpr = 1 + EXPONENT + FRACTION
    AT: tl.constexpr = PART % (16 // BITS) * BITS
    SIGN: tl.constexpr = 16 - BITS - AT
    UP: tl.constexpr = 10 - FRACTION - AT
    SIZE: tl.constexpr = ((1 << (BITS - 1)) - 1) << (10 - FRACTION)  # pyright: ignore[reportOperatorIssue]
    moved = words << UP if UP >= 0 else words >> -UP
    both = ((words << SIGN) & -0x7FFF8000) | (moved & (SIZE * 65537))
    half = both if PART < 16 // BITS else both >> 16
    return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def code(words, PART: tl.constexpr, INTEGER: tl.constexpr):
    """Byte PART of words as a number that tensor cores multiply: an integer of which the byte is 128 more, or a float e4m3."""
    byte = (words >> (PART * 8)) & 255
    if INTEGER:
        return (byte ^ 128).to(tl.int8)
    else:
        return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def exponent(code):
    """2^(code - 127) of the lowest 8 bits (e8m0)."""
    bits = (code & 255) << 23
    return tl.where(bits == 0, 0x00400000, bits).to(tl.float32, bitcast=True)


E4M3, E2M1, BF16 = tl.constexpr("e4m3"), tl.constexpr("e2m1"), tl.constexpr("bf16")
"""The interpreter takes the names of formats in no other form."""


@triton.constexpr_function
def scales():
    """Whether the chip's tensor cores multiply codes in blocks under scales: data-centre Blackwell (tcgen05)."""
    return cuda_capability_geq(10, 0) and not cuda_capability_geq(11, 0)


@triton.jit
def scaled_dot(x, x_scale, w, w_scale, acc):
    """acc f32[m, n] plus the product of x e4m3[m, k] and w u8[k / 2, n], two codes e2m1 to a byte, each 32 along k under a power
    of two e8m0: u8[m, k / 32] and u8[n, k / 32]. Where tensor cores know no scales both sides are decoded to bf16, exactly; x
    here, for Triton 3.6 does it with an instruction that Ada lacks."""
    if scales():
        return tl.dot_scaled(x, x_scale, E4M3, w, w_scale, E2M1, acc)
    else:
        ROWS: tl.constexpr = x.shape[0]
        DEPTH: tl.constexpr = x.shape[1]
        blocks = x.to(tl.float32).reshape(ROWS, DEPTH // 32, 32) * exponent(x_scale.to(tl.int32))[:, :, None]
        return tl.dot_scaled(blocks.to(tl.bfloat16).reshape(ROWS, DEPTH), None, BF16, w, w_scale, E2M1, acc)


@triton.jit
def tile(pid, rows, columns, GROUP: tl.constexpr):
    """The tile of a program, in bands of GROUP rows of tiles, so that neighbours share what they read."""
    band = pid // (GROUP * columns)
    first = band * GROUP
    height = min(rows - first, GROUP)
    inner = pid % (GROUP * columns)
    return first + inner % height, inner // height


@triton.jit
def turn(angle):
    """Cosine and sine of f32 angles up to 10^5: reduced by multiples of pi / 2 in three parts, then polynomials (Cephes,
    Moshier 1989, sinf.c). A tenth of the code of `tl.sin`, which is ready for angles of any size."""
    n = round_even(angle * 0.6366197723675814)
    r = ((angle - n * 1.5703125) - n * 4.837512969970703125e-4) - n * 7.54978995489188216e-8
    square = r * r
    sine = r + r * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4))
    cosine = 1.0 - 0.5 * square + square * square * (
        4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5))
    quadrant = n.to(tl.int32)
    odd = (quadrant & 1) != 0
    cos, sin = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((quadrant + 1) & 2) != 0, -cos, cos), tl.where((quadrant & 2) != 0, -sin, sin)
