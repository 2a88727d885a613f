"""Bugs in weight formats and in rounding to them."""

from __future__ import annotations

from benchmarks.mutations.mutant import Mutant, case, contract, diff, example, prop

_INTEGER, _PACKING, _SCALING = "ir/formats/integer.py", "ir/formats/packing.py", "ir/formats/scaling.py"
_FORMATS, _PUBLISHED = "tests/ir/test_formats.py", "tests/ir/test_formats_published.py"
_STORED = "tests/passes/test_quantize.py::test_the_pass_stores_what_rounding_to_nearest_gives"

MUTANTS: tuple[Mutant, ...] = (
    Mutant("zero-point-added", _INTEGER, "(codes.astype(step.dtype) - offset) * step",
           "(codes.astype(step.dtype) + offset) * step",
           (prop(f"{_FORMATS}::test_an_element_is_as_near_as_the_format_promises[int4]"),)),
    Mutant("zero-point-of-the-other-sign", _INTEGER, "zero = np.rint(divided(-low, step))", "zero = np.rint(divided(low, step))",
           (prop(f"{_FORMATS}::test_an_element_is_as_near_as_the_format_promises[int4]"), contract("quantize{format=int4}"))),
    Mutant("symmetric-codes-one-short", _INTEGER, "1 << (self.bits - 1)", "(1 << (self.bits - 1)) - 1",
           (prop(f"{_FORMATS}::test_an_element_is_as_near_as_the_format_promises[int4]"),
            prop(f"{_FORMATS}::test_integers_use_their_outermost_code[4]"))),
    Mutant("outermost-code-of-the-other-sign", _INTEGER, "np.float32(-self.middle)", "np.float32(self.middle)",
           (prop(f"{_FORMATS}::test_an_element_is_as_near_as_the_format_promises[int4]"),
            prop(f"{_FORMATS}::test_integers_use_their_outermost_code[4]"))),
    Mutant("codes-cut-instead-of-rounded", _INTEGER, "exact = np.rint(divided(w, step))", "exact = np.trunc(divided(w, step))",
           (prop(f"{_FORMATS}::test_an_element_is_as_near_as_the_format_promises[int4]"),)),
    Mutant("nibbles-in-the-other-order", _PACKING, "shifts = np.arange(per, dtype=np.uint8) * np.uint8(bits)",
           "shifts = np.arange(per, dtype=np.uint8)[::-1] * np.uint8(bits)",
           (prop(f"{_FORMATS}::test_codes_pack_and_unpack[int4]"), case("dequantize-int4_in_a_linear"))),
    Mutant("groups-padded-in-front", _PACKING, "x = np.concatenate([x, np.zeros((*x.shape[:-1], short), x.dtype)], -1)",
           "x = np.concatenate([np.zeros((*x.shape[:-1], short), x.dtype), x], -1)",
           (example(f"{_FORMATS}::test_groups_are_padded_with_zeros"),)),
    Mutant("power-of-two-scales-one-up", _SCALING, "exponent = np.frexp(reach)[1] - np.frexp(np.float32(peak))[1]",
           "exponent = np.frexp(reach)[1] - np.frexp(np.float32(peak))[1] + 1", (example(f"{_PUBLISHED}::test_mxfp4_blocks"),)),
    Mutant("second-level-offset-dropped", _SCALING, "return step if offset is None else step + np.asarray(offset, wide)",
           "return step",
           (example(f"{_PUBLISHED}::test_double_quantised_scales"), case("dequantize-nf4"))),
    Mutant("second-level-scales-shared-by-the-wrong-block", _SCALING, "np.repeat(factor, SUPERBLOCK)[:step.size]",
           "np.resize(factor, step.size)",
           (example(f"{_PUBLISHED}::test_double_quantised_scales"), diff(f"{_PUBLISHED}::test_stored_parts_decode_alone[nf4]"),
            case("dequantize-nf4_of_several_blocks_of_scales_in_a_linear"))),
    Mutant("ties-of-nf4-go-up", "ir/formats/grid.py", "np.searchsorted((table[1:] + table[:-1]) / 2, x)",
           'np.searchsorted((table[1:] + table[:-1]) / 2, x, side="right")',
           (example(f"{_PUBLISHED}::test_nf4_takes_the_nearest_and_on_a_tie_the_lower"),)),
    Mutant("every-row-under-the-first-rows-step", "passes/quantization/rtn.py", "x[rows if len(x) > 1 else slice(None), :, None]",
           "x[:1, :, None]", (contract("quantize{format=int4}"), prop(f"{_STORED}[int4-none]"))),
    Mutant("group-twice-as-wide-as-said", "passes/quantization/quantize.py", "group=scheme.width(k), symmetric",
           "group=2 * scheme.width(k), symmetric",
           (contract("quantize{format=int4 group=16}", width=8, head_dim=4, kv_heads=2, group=3), prop(f"{_STORED}[int4-none]"))),
    Mutant("scale-search-keeps-the-worst", "passes/quantization/rtn.py", "better = error < least",
           "better = (error > least) | np.isinf(least)",
           (prop("tests/passes/test_quantize.py::test_searching_steps_leaves_no_larger_squared_error[True-int4]"),)),
)
