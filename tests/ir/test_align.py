"""Alignment pairs what corresponds, whatever it is called, and layers are found from weights and data flow."""

from __future__ import annotations

import re

from hypothesis import given, settings

from ingot.ir.align import align
from ingot.ir.copy import copied
from ingot.ir.layers import Layer, layers, weight_layers
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.testing import graphs
from tests.ir.test_scale import llama

CHAIN = """module @m {
  dim B in 1..8
  func @forward(%x: f32[B, 4]) -> (f32[B, 4]) {
    %a = exp(%x) : f32[B, 4]
    %b = tanh(%a) : f32[B, 4]
    %c = neg(%b) : f32[B, 4]
    %d = sigmoid(%c) : f32[B, 4]
    %e = abs(%d) : f32[B, 4]
    %f = silu(%e) : f32[B, 4]
    return %f
  }
}
"""


def unpaired(a: Module, b: Module) -> tuple[list[str], list[str]]:
    """Names of the ops without a partner on either side."""
    pairs = align(a, b)
    taken = set(pairs.ops.values())
    return [op.name for op in a.ops if op not in pairs.ops], [op.name for op in b.ops if op not in taken]


@given(graphs())
@settings(max_examples=40)
def test_a_module_aligns_with_its_copy_under_other_names(module: Module) -> None:
    twin, mapping = copied(module)
    for i, op in enumerate(twin.ops):
        for value in op.results:
            value.hint = f"other{i}"
    pairs = align(module, twin)
    assert len(pairs.ops) == sum(1 for _ in module.ops)
    for old, new in mapping.items():
        assert pairs.same(old, new)
        assert pairs.classes[pairs.values[old]] == pairs.classes[new]  # a duplicate may be paired with its like


@given(graphs(), graphs())
@settings(max_examples=40)
def test_pairs_are_one_to_one_and_of_one_kind(a: Module, b: Module) -> None:
    pairs = align(a, b)
    assert len(set(pairs.ops.values())) == len(pairs.ops)
    assert len(set(pairs.values.values())) == len(pairs.values)
    assert all(x.name == y.name for x, y in pairs.ops.items())
    for x, y in pairs.ops.items():
        assert [pairs.values[v] for v in x.results] == list(y.results)


def test_changes_at_both_ends_leave_the_middle_paired() -> None:
    """No weights, other expressions throughout, and other users at the end: only neighbours tell."""
    other = CHAIN.replace("exp(", "relu(").replace("silu(", "gelu(")
    assert unpaired(parse_module(CHAIN), parse_module(other)) == (["exp", "silu"], ["relu", "gelu"])


def test_an_op_put_into_a_chain_is_the_only_one_without_a_partner() -> None:
    other = CHAIN.replace("    %d = sigmoid(%c)", "    %n = log(%c) : f32[B, 4]\n    %d = sigmoid(%n)")
    assert unpaired(parse_module(CHAIN), parse_module(other)) == ([], ["log"])
    assert unpaired(parse_module(other), parse_module(CHAIN)) == (["log"], [])


def test_a_change_in_the_first_layer_stays_there() -> None:
    a = parse_module(llama(6))
    b = parse_module(llama(6).replace("%s0 = silu(%g0)", "%s0 = sigmoid(%g0)"))
    assert unpaired(a, b) == (["silu"], ["sigmoid"])


def test_a_layer_taken_out_is_the_one_without_partners() -> None:
    text = llama(6)
    body = re.search(r"    %n3 = .*?%x4 = [^\n]*\n", text, re.DOTALL)
    assert body is not None
    cut = re.sub(r"  const @l3\.[^\n]*\n", "", text.replace(body[0], "").replace("%x4", "%x3"))
    a, b = parse_module(text), parse_module(cut)
    pairs = align(a, b)
    assert {str(layers(a)[op]) for op in a.ops if op not in pairs.ops} == {"l.3"}
    assert len(pairs.ops) == len(b.main.ops)


def test_weights_are_known_by_origin_before_name() -> None:
    a = parse_module(llama(2))
    b = parse_module(re.sub(r"@l1\.up\b", "@up_of_one", llama(2)))
    pairs = align(a, b)
    assert pairs.values[a.consts["l1.up"]] is b.consts["up_of_one"]
    assert len(pairs.ops) == len(a.main.ops)


def test_swapped_operands_are_not_the_same() -> None:
    text = CHAIN.replace("%c = neg(%b)", "%c = sub(%a, %b)")
    a, b = parse_module(text), parse_module(text.replace("sub(%a, %b)", "sub(%b, %a)"))
    assert unpaired(a, b) == ([], [])
    x, y = a.main.ops[2], b.main.ops[2]
    assert align(a, b).ops[x] is y
    assert not align(a, b).same(x.operands[0], y.operands[0])


def test_aligning_changes_neither_module() -> None:
    a, b = parse_module(llama(2)), parse_module(llama(3))
    before = print_module(a), print_module(b), a.epoch, b.epoch
    align(a, b)
    assert (print_module(a), print_module(b), a.epoch, b.epoch) == before


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_read_from_names_of_weights() -> None:
    found = weight_layers(["model.layers.0.q.weight", "model.layers.11.q.weight", "model.embed.weight", "encoder.2.only",
                           "kc0.scale", "kc1.scale"])
    assert found == {"model.layers.0.q.weight": Layer("model.layers", 0), "model.layers.11.q.weight": Layer("model.layers", 11)}
    assert weight_layers(["h.0.w", "h.1.w"]) == {"h.0.w": Layer("h", 0), "h.1.w": Layer("h", 1)}
    assert weight_layers(["l0.w", "l1.w"]) == {"l0.w": Layer("l", 0), "l1.w": Layer("l", 1)}
    assert weight_layers(["w", "v"]) == {}


def test_every_layer_of_a_decoder_has_the_same_ops() -> None:
    module = parse_module(llama(4))
    found = layers(module)
    by_layer = {str(layer): [op.name for op in module.ops if found.get(op) == layer] for layer in set(found.values())}
    assert set(by_layer) == {"l.0", "l.1", "l.2", "l.3"}
    assert len(by_layer["l.0"]) == 24
    assert all(ops == by_layer["l.0"] for ops in by_layer.values())
    assert [op.name for op in module.ops if op not in found] == ["embedding", "linear"]


def test_what_every_layer_uses_is_in_none() -> None:
    text = llama(2).replace("    %x0 = embedding", "    %c = neg(%pos) : i64[B, S]\n    %x0 = embedding")
    text = text.replace("rope(%qt0, %pos,", "rope(%qt0, %c,").replace("rope(%qt1, %pos,", "rope(%qt1, %c,")
    module = parse_module(text)
    assert module.main.ops[0] not in layers(module)
