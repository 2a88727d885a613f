"""Every op, in several element types and shapes: the reference, torch and onnxruntime agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ingot.backends.decompose import decomposed
from ingot.backends.onnx.registry import STANDARD, rules_for
from ingot.backends.torch.registry import find
from ingot.ir import interpret
from ingot.ir.op import OPS, Op
from ingot.ir.value import Value
from tests.backends.differential import BACKENDS, differential, distance
from tests.backends.op_cases import CASES, OpCase

UNSUPPORTED: dict[str, set[str]] = {"torch": set(), "onnx": set()}
"""Ops a backend has no rule for and that do not decompose, on purpose."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.name}".replace(" ", "_"))
def test_op(case: OpCase) -> None:
    made = case.make()
    backends = [b for b in BACKENDS if b not in case.skip]
    for sizes in case.sizes:
        differential(made.module, made.inputs(sizes), op=case.op, backends=backends)


def test_every_op_has_a_case() -> None:
    assert sorted(set(OPS) - {c.op for c in CASES}) == []


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_backend_lowers_every_op(name: str) -> None:
    cls = OPS[name]
    written_out = cls.decompose is not Op.decompose
    assert (find(cls) is not None or written_out) != (name in UNSUPPORTED["torch"])
    assert (any(rules_for(cls, opset_only=True)) or written_out) != (name in UNSUPPORTED["onnx"])


@pytest.mark.parametrize("case", [c for c in CASES if OPS[c.op].decompose is not Op.decompose],
                         ids=lambda c: f"{c.op}-{c.name}".replace(" ", "_"))
def test_decomposition_is_exact(case: OpCase) -> None:
    made = case.make()
    op = next(o for o in made.func.ops if o.name == case.op)
    expanded = decomposed(op)
    assert expanded is not None
    func, outer = expanded
    written = func.module
    written.dims.update(made.module.dims)
    for sizes in case.sizes:
        seen: dict[Value, np.ndarray] = {}
        inputs = made.inputs(sizes)
        interpret.run(made.module, inputs, observe=seen.__setitem__)
        seen.update(zip(made.func.params, inputs))
        for got, result in zip(interpret.run(written, [seen[v] for v in outer]), op.results, strict=True):
            assert distance(got, seen[result]) < 1e-12


def test_standard_rules_are_registered_once() -> None:
    for rules in STANDARD.values():
        assert len(set(rules)) == len(rules)
