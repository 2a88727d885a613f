"""Every architecture of the table: saved, loaded and run by the reference, equal to transformers at another shape."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ingot.frontend.load import load
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.ir.weights import UnknownWeight
from tests.frontend.examples import eager, imported, inputs_for
from tests.frontend.models import DECODERS, ENCODERS, TABLE, VISION, saved, tiny

WRITTEN_OUT = ("mpnet",)
"""Models whose attention is not one op: it is part of their code, not called through transformers' interface."""


def attention_is_one_op_per_layer(module: Module) -> None:
    """And no mask is built: an encoder's goes straight into the attention."""
    count = Counter(op.name for op in module.ops)
    assert count["attention"] == 2
    assert not count["softmax"] + count["where"] + count["triangle"] + count["arange"] + count["full"]
    mask = module.main.param("mask") if module.meta["kind"] == "encoder" else None
    assert all(op.mask is mask for op in module.ops if isinstance(op, Attention))


@pytest.mark.parametrize("name", TABLE)
def test_loads_and_equals_transformers(name: str, tmp_path: Path) -> None:
    _, model = tiny(name)
    module = load(saved(model, tmp_path / name))
    verify(module)
    text = print_module(module)
    assert print_module(parse_module(text)) == text
    assert module.meta["kind"] == next(k for k, names in (("decoder", DECODERS), ("encoder", ENCODERS), ("vision", VISION))
                                       if name in names)
    assert not any(isinstance(const.weight, UnknownWeight) for const in module.consts.values())
    inputs = inputs_for(module)
    if name not in WRITTEN_OUT + VISION:
        attention_is_one_op_per_layer(module)
    for found, expected in zip(run(module, inputs, precision="declared"), eager(model, inputs), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_one_token_of_one_sequence(name: str) -> None:
    module, model = imported(name)
    inputs = inputs_for(module, batch=1, length=1)
    np.testing.assert_allclose(run(module, inputs, precision="declared")[0], eager(model, inputs)[0], atol=1e-5)
