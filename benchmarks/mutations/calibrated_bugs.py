"""Bugs in passes that move numbers between weights, or fit codes to calibration text: rotation, smoothing, AWQ, GPTQ."""

from __future__ import annotations

from typing import Any

from benchmarks.mutations.mutant import Mutant, contract, diff, example, prop

_STREAM, _HEADS, _HADAMARD = "passes/rotation/stream.py", "passes/rotation/heads.py", "passes/rotation/hadamard.py"
_CHANNELS, _SITES = "passes/quantization/channels.py", "passes/quantization/scale_sites.py"
_AWQ, _GPTQ = "passes/quantization/awq.py", "passes/quantization/gptq.py"
_MOMENTS = "passes/calibration/moments.py"
_AS_PUBLISHED = "tests/passes/test_gptq.py::test_is_the_paper_s_update_by_the_inverse[4]"
_MEANS = "tests/passes/test_gptq.py::test_moments_are_means_over_all_tokens"
_LESS = "tests/passes/test_gptq.py::test_loses_less_than_the_nearest_codes_under_the_best_steps"
_LACK = "tests/passes/test_gptq.py::test_what_the_residual_sum_lacks"
_PLAIN: dict[str, Any] = {"place": "pre", "final_norm": True, "mlp": "plain", "width": 8}
_UNTIED: dict[str, Any] = {**_PLAIN, "tied": False}

MUTANTS: tuple[Mutant, ...] = (
    # rotation
    Mutant("rotation-not-transposed", _STREAM, "self.rotate(self.rotate(np.diag(g)).T)", "self.rotate(self.rotate(np.diag(g)))",
           (contract("rotate", **_PLAIN),)),
    Mutant("norm-weight-behind-the-rotation", _STREAM, "lambda w, g: self.rotate(w * g)", "lambda w, g: self.rotate(w) * g",
           (contract("rotate", **_UNTIED),)),
    Mutant("stream-not-centred", _STREAM, "self.rotate(rows - rows.mean(-1, keepdims=True) if self.centred else rows)",
           "self.rotate(rows)", (contract("rotate", **_UNTIED, norm="layer"),)),
    Mutant("bias-behind-a-norm-dropped", _STREAM, "lambda w, b, *old: w @ b + sum(old)", "lambda w, b, *old: w @ b",
           (contract("rotate", **_UNTIED, norm="layer", norm_bias=True, mlp_bias=True),)),
    Mutant("bias-enters-the-stream-unturned", _STREAM, 'self._set(writer, "bias", self._written)', "pass",
           (contract("rotate", **_UNTIED, mlp_bias=True),)),
    Mutant("turned-norm-forgets-its-eps", _STREAM, "RmsNorm(norm.x, None, norm.eps)", "RmsNorm(norm.x, None)",
           (contract("rotate", **_UNTIED, norm="layer"),)),
    Mutant("turned-skip-norm-forgets-its-eps", _STREAM, "SkipRmsNorm(norm.x, norm.skip, None, norm.eps)",
           "SkipRmsNorm(norm.x, norm.skip)", (contract("fuse,rotate", **_UNTIED, norm="layer"),)),
    Mutant("heads-read-as-they-were", _HEADS, "_turn(reader.w, columns, rotation, axis=1)", "pass",
           (contract("rotate", kv_heads=2),)),
    Mutant("value-bias-not-turned", _HEADS, "_turn(source.bias, rows, rotation, axis=0)", "pass",
           (contract("rotate", kv_heads=2, attention_bias=True),)),
    Mutant("values-of-two-attentions-turned", _HEADS,
           "if any(isinstance(v.op, Attention) and v.op is not op for v in made.at):", "if not made.at:",
           (example("tests/passes/test_rotate.py::test_values_that_two_attentions_read_stay"),)),
    Mutant("hadamard-scaled-by-a-part", _HADAMARD, "math.sqrt(self.n))", "math.sqrt(self.n // m))",
           (prop("tests/passes/test_rotate.py::test_hadamard_matrices[12]"),)),
    # factors between weights
    Mutant("factor-multiplied-on-both-sides", _SITES, "_scale(module, const, 1 / divisor, made_by)",
           "_scale(module, const, divisor, made_by)", (contract("smooth", **_UNTIED),)),
    Mutant("factor-not-in-the-bias", _SITES, "return {name: value for name, value in given.items() if isinstance(value, Const)}",
           'return {name: value for name, value in given.items() if isinstance(value, Const) and name == "w"}',
           (contract("smooth", **_UNTIED, norm="layer", norm_bias=True),)),
    Mutant("factor-in-one-of-two-readers", _SITES, "in {reader.w: reader for reader in self.readers}.items():",
           "in [*{reader.w: reader for reader in self.readers}.items()][:1]:", (contract("smooth", **_UNTIED),)),
    Mutant("blocked-channels-are-free", _SITES, "return np.where(np.isin(channels, list(blocked)), NONE, channels)",
           "return channels",
           (contract("smooth", **_UNTIED, qk_norm="head"),
            example("tests/passes/test_smooth.py::test_where_a_factor_does_not_pass[%a = relu(%h) : f32[B, 6]-%y, %h-0]"))),
    Mutant("shared-weights-take-a-factor", _SITES,
           "return const.type.dtype.is_float and all(user in users for user in const.users)",
           "return const.type.dtype.is_float", (contract("smooth", **_PLAIN),)),
    Mutant("channels-of-key-heads-tiled", _CHANNELS, "np.repeat(given[op.v][:1, :, :1], heads // shared, 1)",
           "np.tile(given[op.v][:1, :, :1], (1, heads // shared, 1, 1))", (contract("smooth", kv_heads=2, group=2),)),
    Mutant("channel-squared-is-free", _CHANNELS, "return (np.where(both, NONE, np.maximum(x, y)),)",
           "found.blocked.clear()\n        return (np.maximum(x, y),)",
           (example("tests/passes/test_smooth.py::test_where_a_factor_does_not_pass[%a = mul(%h, %h) : f32[B, 6]-%y-0]"),)),
    Mutant("smoothing-the-other-way", "passes/quantization/smooth.py",
           "np.where(used, x, 1) ** self.alpha / np.where(used, w, 1) ** (1 - self.alpha)",
           "np.where(used, x, 1) ** (1 - self.alpha) / np.where(used, w, 1) ** self.alpha",
           (example("tests/passes/test_smooth.py::test_activations_and_weights_share_the_size"),)),
    Mutant("awq-judges-by-the-scaled-weight", _AWQ, "error = rounding(w * factor) / factor - w",
           "error = rounding(w * factor) - w * factor",
           (prop("tests/passes/test_awq.py::test_the_loss_is_that_of_what_is_computed"),)),
    Mutant("awq-takes-the-last-alpha", _AWQ, "if lost < least:", "if lost < np.inf:",
           (diff("tests/passes/test_awq.py::test_the_model_loses_less"),)),
    # GPTQ
    Mutant("gptq-factor-of-the-other-triangle", _GPTQ,
           "np.linalg.cholesky(damped[np.ix_(order[::-1], order[::-1])])[::-1, ::-1]",
           "np.linalg.cholesky(damped[np.ix_(order, order)]).T", (diff(_AS_PUBLISHED),)),
    Mutant("gptq-errors-pushed-the-other-way", _GPTQ, "x = wanted[j - start] + how.pull[j, block:j]",
           "x = wanted[j - start] - how.pull[j, block:j]", (diff(_AS_PUBLISHED),)),
    Mutant("gptq-errors-stay-in-their-block", _GPTQ, "if j == block > start:", "if j < 0:",
           (diff("tests/passes/test_gptq.py::test_errors_reach_the_columns_behind_their_block"),)),
    Mutant("gptq-errors-stay-in-their-group", _GPTQ, "wanted = target[columns] + how.pull[start:stop, :start] @ error[:start]",
           "wanted = target[columns]", (diff(_AS_PUBLISHED),)),
    Mutant("act-order-not-undone", _GPTQ, "values[column] = fmt.nearest_values(x, *each)\n"
           "            error[j] = target[column] - values[column]",
           "values[j] = fmt.nearest_values(x, *each)\n            error[j] = target[column] - values[j]",
           (diff(_AS_PUBLISHED),)),
    Mutant("steps-in-the-order-of-importance", _GPTQ, "index = start + len(columns), columns[0] // how.group",
           "index = start + len(columns), start // how.group", (diff(_AS_PUBLISHED), prop(f"{_LESS}[True-int4]"))),
    Mutant("least-important-columns-first", _GPTQ, "key=lambda span: -size[span].mean()", "key=lambda span: size[span].mean()",
           (example("tests/passes/test_gptq.py::test_columns_go_by_importance_within_whole_groups"),)),
    Mutant("drift-of-the-other-sign", _MOMENTS, "moved = original.rows(twins[x], batch) - rows",
           "moved = rows - original.rows(twins[x], batch)",
           (diff(_MEANS),)),
    Mutant("compensation-forgets-the-residual", _MOMENTS,
           "missing = original.rows(twins[other], batch) - track.rows(other, batch)",
           "missing = torch.zeros_like(track.rows(other, batch))", (diff(_LACK),)),
    Mutant("squares-of-the-first-block-alone", _MOMENTS, "for start in range(0, len(total), _BLOCK):",
           "for start in range(0, min(len(total), _BLOCK), _BLOCK):", (diff(_MEANS),)),
    Mutant("moments-not-averaged", _MOMENTS, "return Moments(second.mul_(scale).numpy(),", "return Moments(second.numpy(),",
           (diff(_MEANS),)),
)
