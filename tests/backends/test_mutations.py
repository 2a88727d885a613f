"""The differential test notices a lowering that is wrong in one detail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ingot.backends.onnx import registry as onnx_registry
from ingot.backends.onnx import (
    rules_attention,
    rules_layout,
    rules_matmul,
    rules_norm,
    rules_pointwise,
    rules_quant,
    rules_reduce,
)
from ingot.backends.torch import registry as torch_registry
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.layout import Concat, Slice, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Gelu, Mod
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.reduce import Variance
from ingot.ir.ops.rope import Rope
from tests.backends.differential import differential, distance
from tests.backends.op_cases import CASES

Change = Callable[[Any], Any]


def _none(value: Any) -> None:
    """An operand or attribute dropped."""


ONNX_MUTANTS: dict[str, tuple[type[Op], Any, dict[str, Change]]] = {
    "transposed perm": (Transpose, rules_layout.transpose, {"perm": lambda p: p[::-1]}),
    "slice starts one late": (Slice, rules_layout.slice_, {"start": lambda n: n + 1, "stop": lambda n: n + 1}),
    "concat in the other order": (Concat, rules_layout.concat, {"xs": lambda xs: xs[::-1]}),
    "dropped bias": (Linear, rules_matmul.linear, {"bias": _none}),
    "dropped scale": (Attention, rules_attention.attention, {"scale": lambda s: 1.0}),
    "window one short": (Attention, rules_attention.attention, {"window": lambda w: w and w - 1}),
    "mask forgotten": (Attention, rules_attention.attention, {"mask": _none}),
    "soft cap forgotten": (Attention, rules_attention.attention, {"softcap": _none}),
    "attention bias forgotten": (Attention, rules_attention.attention, {"bias": _none}),
    "yarn factor forgotten": (Rope, rules_attention.rope, {"scale": lambda s: 1.0}),
    "pairs the other way": (Rope, rules_attention.rope, {"interleaved": lambda i: not i}),
    "another epsilon": (RmsNorm, rules_norm.rms_norm, {"eps": lambda e: e / 10}),
    "norm without bias": (LayerNorm, rules_norm.layer_norm, {"bias": _none}),
    "tanh for erf": (Gelu, rules_pointwise.activation, {"approximate": lambda a: "tanh"}),
    "another correction": (Variance, rules_reduce.variance, {"correction": lambda n: 1.0 - n}),
    "zero points forgotten": (Dequantize, rules_quant.dequantize, {"zero": _none}),
}


def _run(cls: type[Op], backends: tuple[str, ...]) -> None:
    for case in CASES:
        if case.op == cls.name:
            made = case.make()
            for sizes in case.sizes:
                differential(made.module, made.inputs(sizes), op=case.op, backends=backends)


@pytest.mark.parametrize("name", ONNX_MUTANTS)
def test_a_wrong_onnx_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, fn, changes = ONNX_MUTANTS[name]

    def mutant(op: Op, lo: Any) -> Any:
        twin = copy.copy(op)
        twin.__dict__.update({k: v(getattr(op, k)) for k, v in changes.items()})
        return fn(twin, lo)

    monkeypatch.setitem(onnx_registry.STANDARD, cls, [mutant])
    with pytest.raises(AssertionError, match="is off by"):
        _run(cls, ("ort-as-written",))


def test_a_causal_mask_off_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original, _ = torch_registry.find(Attention) or (None, False)
    assert original is not None

    def mutant(op: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pos: Any, *rest: Any) -> Any:
        return original(op, q, k, v, pos if pos is None else pos + 1, *rest)

    monkeypatch.setitem(torch_registry.RULES, Attention, mutant)
    with pytest.raises(AssertionError, match="is off by"):
        _run(Attention, ("torch",))


def test_a_cache_write_off_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original, _ = torch_registry.find(CacheWrite) or (None, False)
    assert original is not None
    monkeypatch.setitem(torch_registry.RULES, CacheWrite, lambda op, cache, new, pos: original(op, cache, new, pos - 1))
    with pytest.raises(AssertionError, match="is off by"):
        _run(CacheWrite, ("torch",))


def test_a_truncating_remainder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_registry.RULES, Mod, lambda op, x, y: torch.fmod(x, y))
    with pytest.raises(AssertionError, match="is off by"):
        _run(Mod, ("torch",))


def test_distance_counts_shapes_nans_and_infinities() -> None:
    assert distance(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == float("inf")
    assert distance(np.array([1.0, np.inf]), np.array([1.0, np.inf])) == 0
    assert distance(np.zeros((2, 1)), np.zeros((1, 2))) == float("inf")
