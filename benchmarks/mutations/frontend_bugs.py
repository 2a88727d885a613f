"""Bugs in what is read from outside: torch's ops, transformers' models, checkpoints and GGUF files."""

from __future__ import annotations

from benchmarks.mutations.mutant import Mutant, diff, example

_POINTWISE, _LAYOUT, _NN = "frontend/aten/pointwise.py", "frontend/aten/layout.py", "frontend/aten/nn.py"
_ATEN = "tests/frontend/test_aten.py"
_WHOLE = "tests/backends/test_end_to_end.py::test_all_backends_agree_with_transformers"

MUTANTS: tuple[Mutant, ...] = (
    Mutant("gelu-imported-as-erf", _POINTWISE, "return g(p.Gelu(x, approximate))", "return g(p.Gelu(x))",
           (diff(f"{_ATEN}::test_arithmetic[activations]"),)),
    Mutant("rsub-operands-swapped", _POINTWISE, "return sub(g, y, x, alpha)", "return sub(g, x, y, alpha)",
           (diff(f"{_ATEN}::test_arithmetic[scalars]"), diff(f"{_ATEN}::test_arithmetic[alpha]"))),
    Mutant("add-forgets-alpha", _POINTWISE, "x, y = g.common(x, _scaled(g, y, alpha))", "x, y = g.common(x, y)",
           (diff(f"{_ATEN}::test_arithmetic[alpha]"),)),
    Mutant("masked-fill-inverted", _POINTWISE,
           "return g(p.Where(g.cast(mask, bool_), g.tensor(value, x.type.dtype), x))",
           "return g(p.Where(g.cast(mask, bool_), x, g.tensor(value, x.type.dtype)))",
           (diff(f"{_ATEN}::test_arithmetic[choice]"),)),
    Mutant("slice-starts-at-the-front", _LAYOUT, "first = _from_front(start or 0, size)", "first = _from_front(0, size)",
           (diff(f"{_ATEN}::test_layout[slices]"),)),
    Mutant("slice-from-the-end-one-late", _LAYOUT,
           "return size + position if isinstance(position, int) and position < 0 else position",
           "return size + position - 1 if isinstance(position, int) and position < 0 else position",
           (diff(f"{_ATEN}::test_layout[slices]"),)),
    Mutant("pad-before-and-after-swapped", _LAYOUT, "list(zip(pads[-2::-2], pads[-1::-2]))",
           "list(zip(pads[-1::-2], pads[-2::-2]))",
           (diff(f"{_ATEN}::test_layout[pad]"),)),
    Mutant("roll-the-other-way", _LAYOUT, "at = (-shift) % size", "at = shift % size", (diff(f"{_ATEN}::test_layout[roll]"),)),
    Mutant("mean-keeps-its-axis", "frontend/aten/reduce.py", "_axes(x, dim), keepdim))\n    return rule",
           "_axes(x, dim), True))\n    return rule", (diff(f"{_ATEN}::test_reductions[sums]"),)),
    Mutant("variance-of-the-population", "frontend/aten/reduce.py", "1.0 if correction is None else float(correction)",
           "0.0 if correction is None else float(correction)", (diff(f"{_ATEN}::test_reductions[spread]"),)),
    Mutant("sdpa-scale-dropped", _NN, "scale=last ** -0.5 if scale is None else float(scale)",
           "scale=1.0 if scale is None else float(scale)", (diff(f"{_ATEN}::test_layers[attention]"),)),
    Mutant("layer-norm-eps-dropped", _NN, "g(LayerNorm(flat, w, bias, float(eps)))", "g(LayerNorm(flat, w, bias))",
           (diff(f"{_ATEN}::test_layers[norms]"), diff(f"{_WHOLE}[bert]"))),
    Mutant("addmm-beta-dropped", _NN, "bias = g(Mul(bias, g.scalar(float(beta), g.out.dtype)))", "pass",
           (diff(f"{_ATEN}::test_layers[addmm]"),)),
    Mutant("sliding-window-one-wider", "frontend/attention.py", '"sliding_window_overlay"}): (True, 0),',
           '"sliding_window_overlay"}): (True, 1),',
           (example("tests/frontend/test_huggingface.py::test_windows_caps_and_scales_reach_the_attention"),
            diff(f"{_WHOLE}[mistral]"))),
    Mutant("softcap-not-imported", "frontend/attention.py",
           "out = attention(query, key, value, padding, bias, s_aux, scale, causal, window, softcap)",
           "out = attention(query, key, value, padding, bias, s_aux, scale, causal, window, None)",
           (example("tests/frontend/test_huggingface.py::test_windows_caps_and_scales_reach_the_attention"),
            diff(f"{_WHOLE}[gemma2]"))),
    Mutant("padding-mask-not-imported", "frontend/attention.py", "mask.causal, mask.window, mask.padding",
           "mask.causal, mask.window, None",
           (diff("tests/frontend/test_huggingface.py::test_an_encoder_sees_what_its_mask_shows"), diff(f"{_WHOLE}[bert]"))),
    Mutant("half-precisions-confused", "ir/weights.py", '"F16": f16, "BF16": bf16,', '"F16": bf16, "BF16": f16,',
           (example("tests/frontend/test_huggingface.py::test_bfloat16_is_kept_or_widened_as_asked"),)),
    Mutant("gguf-weights-in-half-precision", "frontend/gguf.py", "config=config, dtype=torch.float32)",
           "config=config, dtype=torch.float16)", (diff("tests/frontend/test_load.py::test_a_gguf_file_is_converted_once"),)),
    Mutant("tied-weights-untied-when-equal", "frontend/huggingface.py", "if place in out and not np.array_equal(",
           "if place in out and np.array_equal(",
           (diff("tests/frontend/test_checkpoint.py::test_tied_weights_stored_with_other_numbers_are_not_tied"),)),
)
