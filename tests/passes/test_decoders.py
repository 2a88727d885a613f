"""Random decoders: written-out ones are recognised whole, passes keep their contracts, and what has no cache is refused one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.passes.pipeline import parse_pipeline
from ingot.testing import Decoder, assert_contract, assert_exact, decoder_plans, decoders, pipelines

LAYERS = ("rms_norm", "layer_norm", "rope", "attention", "gelu", "silu", "relu", "linear", "softmax", "matmul", "erf", "sigmoid",
          "mean", "cos")
"""Ops that a module has as many of, whether it was built so or recognised."""


@settings(max_examples=25)
@given(decoder_plans())
def test_what_is_written_out_is_recognised(plan: Decoder) -> None:
    raw, wanted = plan.module(raw=True), plan.module()
    assert_exact(wanted, raw, rounds=1, seed=1)
    found = kept(raw, "recognize")
    assert counts(found) == counts(wanted)
    assert attentions(found) == attentions(wanted)


def kept(module: Module, pipeline: str) -> Module:
    """The module after the pipeline, every pass of which keeps its contract."""
    for p in parse_pipeline(pipeline):
        module = assert_contract(p, module)
    return module


def counts(module: Module) -> dict[str, int]:
    found = Counter(op.name for op in module.ops)
    return {name: found[name] for name in LAYERS}


def attentions(module: Module) -> list[dict[str, Any]]:
    """Attributes of attention; factors that were multiplied out of the graph are rounded."""
    return [{name: round(value, 9) if isinstance(value, float) else value for name, value in op.attrs.items()}
            for op in module.ops if op.name == "attention"]


@settings(max_examples=12)
@given(decoder_plans(), st.sampled_from(("fuse", "canonicalize,fold-constants,cse,fuse")),
       st.sampled_from(("insert-kv-cache", "take-logits,insert-kv-cache")))
def test_decoding_in_pieces_equals_the_full_forward(plan: Decoder, before: str, caching: str) -> None:
    assume(plan.positions != "alibi")
    cached = kept(plan.module(), f"{before},{caching}")
    assert sum(op.name == "cache.write" for op in cached.ops) == 2 * plan.layers
    assert print_module(parse_module(print_module(cached))) == print_module(cached)


def test_a_bias_by_position_has_no_cache() -> None:
    with pytest.raises(PassError, match="not a causal decoder"):
        kept(Decoder(positions="alibi").module(), "insert-kv-cache")


@settings(max_examples=12)
@given(st.data(), st.booleans())
def test_legal_pipelines_keep_their_contracts(data: st.DataObject, raw: bool) -> None:
    """Or refuse: caches need attention to be recognised, for one."""
    module = data.draw(decoders(raw=raw))
    for p in data.draw(pipelines(module, most=4, contracts=("exact", "cache"))):
        try:
            module = assert_contract(p, module)
        except PassError:
            continue


def test_the_least_decoder_and_what_its_parts_add() -> None:
    def ops(**changes: Any) -> set[str]:
        return {op.name for op in replace(Decoder(), **changes).module().ops}

    least = ops()
    assert least == {"embedding", "linear", "reshape", "transpose", "attention", "add"}
    assert ops(positions="rope") - least == {"rope"}
    assert ops(positions="alibi") - least == {"arange", "cast", "mul"}
    assert ops(place="sandwich") - least == {"rms_norm"}
    assert ops(norm="layer", place="pre", norm_weight="offset") - least == {"layer_norm", "scalar"}
    assert ops(mlp="gated", activation="silu") - least == {"silu", "mul"}
    assert ops(qkv="fused") - least == {"split"}
    module = Decoder(sinks=True, windows=(3,), softcap=2.0).module()
    [op] = [op for op in module.ops if op.name == "attention"]
    assert (op.attrs["window"], op.attrs["softcap"]) == (3, 2.0)
    assert dict(op.operand_fields)["sinks"] is module.consts["l0.attn.sinks"]


def test_weights_are_those_of_the_seed() -> None:
    one, same, other = (Decoder(seed=n).module().consts["l0.attn.q"].weight.materialize() for n in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.all()
