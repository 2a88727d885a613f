"""Bugs in low-rank adapters: their arithmetic, where they go in joined weights, and adapters kept apart from the weights."""

from __future__ import annotations

from benchmarks.mutations.mutant import Mutant, diff, example

_ARITHMETIC, _INPUTS = "passes/lora/arithmetic.py", "passes/lora/lora_inputs.py"
_APART = "tests/passes/test_lora_inputs.py::test_rows_of_a_batch_with_different_adapters"
_ADDED = "tests/passes/test_merge_lora.py::test_products_are_added[config1-3.5]"

MUTANTS: tuple[Mutant, ...] = (
    Mutant("adapter-scale-dropped", _ARITHMETIC, "(product.T if flipped else product) * np.float32(scale)",
           "(product.T if flipped else product) * np.float32(1)", (diff(_ADDED),)),
    Mutant("rank-stabilised-scale-not-rooted", "passes/lora/adapter.py", "(math.sqrt(self.rank) if self.rooted else self.rank)",
           "self.rank", (diff(_ADDED),)),
    Mutant("adapter-norm-over-the-wrong-axis", _ARITHMETIC, "torch.linalg.norm(total.T if self.flipped else total, dim=1)",
           "torch.linalg.norm(total.T if self.flipped else total, dim=0)",
           (diff("tests/passes/test_merge_lora.py::test_dora_gives_the_rows_of_the_sum_their_norms"),)),
    Mutant("adapter-norm-of-the-base-alone", _ARITHMETIC, "total = torch.from_numpy(_sum(base, delta))",
           "total = torch.from_numpy(_sum(base, 0 * delta))",
           (diff("tests/passes/test_merge_lora.py::test_dora_gives_the_rows_of_the_sum_their_norms"),)),
    Mutant("trained-rows-put-in-order", _ARITHMETIC, "out[list(self.at)] = rows.astype(w.dtype)",
           "out[sorted(self.at)] = rows.astype(w.dtype)",
           (example("tests/passes/test_merge_lora.py::test_modules_saved_as_a_whole_biases_and_rows"),)),
    Mutant("adapter-bias-not-scaled", _ARITHMETIC, "return _sum(w, more.astype(np.float32) * np.float32(self.scale))",
           "return _sum(w, more.astype(np.float32))",
           (example("tests/passes/test_merge_lora.py::test_modules_saved_as_a_whole_biases_and_rows"),)),
    Mutant("narrow-weights-added-to-in-their-type", _ARITHMETIC,
           "w.astype(np.promote_types(w.dtype, np.float32) if w.dtype.kind == \"f\" else np.float32, copy=False) + delta",
           "w + delta.astype(w.dtype)",
           (diff("tests/passes/test_merge_lora.py::test_narrow_weights_are_added_to_in_32_bits"),)),
    Mutant("apart-scale-dropped", _INPUTS, "* np.float32(part.change.scaling())", "* np.float32(1)", (diff(f"{_APART}[clean]"),)),
    Mutant("apart-rows-of-a-joined-weight-mixed", _INPUTS, "part.start:part.start + part.change.shape[0]]",
           "0:part.change.shape[0]]", (diff(f"{_APART}[clean,recognize,clean,fuse]"),)),
    Mutant("apart-factors-on-the-same-places", _INPUTS, "taken[part.adapter] += part.change.rank", "pass",
           (diff(f"{_APART}[clean,recognize,clean,fuse]"),)),
    Mutant("apart-first-adapter-for-rows-without-one", _INPUTS, "found[part.adapter, :, places] = a.T",
           "found[part.adapter - 1, :, places] = a.T", (diff(f"{_APART}[clean]"),)),
)
