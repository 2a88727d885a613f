"""A model of everyday size: thousands of ops print, read back, verify and are cleaned in one go."""

from __future__ import annotations

import pytest

from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.testing import copy_module

LAYER = """
    %n{i} = rms_norm(%x{i}, w=@l{i}.norm1) {{eps = 1e-05}} : bf16[B, S, 64]  loc("model.py:{i}")
    %q{i} = linear(%n{i}, @l{i}.q) : bf16[B, S, 64]
    %k{i} = linear(%n{i}, @l{i}.k) : bf16[B, S, 32]
    %v{i} = linear(%n{i}, @l{i}.v) : bf16[B, S, 32]
    %qh{i} = reshape(%q{i}) {{shape = [B, S, 4, 16]}} : bf16[B, S, 4, 16]
    %kh{i} = reshape(%k{i}) {{shape = [B, S, 2, 16]}} : bf16[B, S, 2, 16]
    %vh{i} = reshape(%v{i}) {{shape = [B, S, 2, 16]}} : bf16[B, S, 2, 16]
    %qt{i} = transpose(%qh{i}) {{perm = [0, 2, 1, 3]}} : bf16[B, 4, S, 16]
    %kt{i} = transpose(%kh{i}) {{perm = [0, 2, 1, 3]}} : bf16[B, 2, S, 16]
    %vt{i} = transpose(%vh{i}) {{perm = [0, 2, 1, 3]}} : bf16[B, 2, S, 16]
    %qr{i} = rope(%qt{i}, %pos, @inv_freq) : bf16[B, 4, S, 16]
    %kr{i} = rope(%kt{i}, %pos, @inv_freq) : bf16[B, 2, S, 16]
    %a{i} = attention(%qr{i}, %kr{i}, %vt{i}) {{scale = 0.25, causal = true}} : bf16[B, 4, S, 16]
    %at{i} = transpose(%a{i}) {{perm = [0, 2, 1, 3]}} : bf16[B, S, 4, 16]
    %am{i} = reshape(%at{i}) {{shape = [B, S, 64]}} : bf16[B, S, 64]
    %o{i} = linear(%am{i}, @l{i}.o) : bf16[B, S, 64]
    %h{i} = add(%x{i}, %o{i}) : bf16[B, S, 64]
    %m{i} = rms_norm(%h{i}, w=@l{i}.norm2) {{eps = 1e-05}} : bf16[B, S, 64]
    %g{i} = linear(%m{i}, @l{i}.gate) : bf16[B, S, 128]
    %u{i} = linear(%m{i}, @l{i}.up) : bf16[B, S, 128]
    %s{i} = silu(%g{i}) : bf16[B, S, 128]
    %p{i} = mul(%s{i}, %u{i}) : bf16[B, S, 128]
    %d{i} = linear(%p{i}, @l{i}.down) : bf16[B, S, 64]
    %x{j} = add(%h{i}, %d{i}) : bf16[B, S, 64]"""
SHAPES = {"norm1": "64", "norm2": "64", "q": "64, 64", "k": "32, 64", "v": "32, 64", "o": "64, 64", "gate": "128, 64",
          "up": "128, 64", "down": "64, 128"}


def llama(layers: int) -> str:
    """A decoder as text: 24 ops per layer."""
    lines = ["# ingot ir v1", "module @llama {", "  dim B in 1..8", "  dim S in 1..2048",
             '  const @embed : bf16[256, 64] = safetensors(file="model.safetensors", key="model.embed_tokens.weight")',
             '  const @inv_freq : f32[8] = dense([1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125])']
    for i in range(layers):
        lines += [f'  const @l{i}.{name} : bf16[{dims}] = safetensors(file="m.safetensors", key="model.layers.{i}.{name}.weight")'
                  for name, dims in SHAPES.items()]
    lines += ["  func @forward(%ids: i64[B, S], %pos: i64[B, S]) -> (bf16[B, S, 256]) {",
              "    %x0 = embedding(%ids, @embed) : bf16[B, S, 64]"]
    body = "".join(LAYER.format(i=i, j=i + 1) for i in range(layers)).removeprefix("\n")
    return "\n".join([*lines, body, f"    %y = linear(%x{layers}, @embed) : bf16[B, S, 256]", "    return %y", "  }", "}", ""])


@pytest.fixture(scope="module")
def text() -> str:
    return llama(95)


def test_a_large_module_reads_back(text: str) -> None:
    module = parse_module(text)
    assert len(module.main.ops) == 2 + 95 * 24
    assert print_module(module) == text
    verify(module)


def test_a_mistake_deep_in_a_large_module_is_found_at_its_line(text: str) -> None:
    from ingot.errors import ParseError

    broken = text.replace("%p90 = mul(%s90, %u90)", "%p90 = mul(%s90, %w90)")
    line = next(i for i, row in enumerate(broken.split("\n"), 1) if "%w90" in row)
    with pytest.raises(ParseError, match="%w90 is not defined here") as caught:
        parse_module(broken, filename="big.ir")
    assert caught.value.where == f"big.ir:{line}:22"


def test_a_large_module_copies_and_empties(text: str) -> None:
    module: Module = copy_module(parse_module(text))
    verify(module)
    module.main.set_returns([module.main.param("ids")])
    assert module.main.drop_dead() == 2 + 95 * 24
    assert not module.consts
    verify(module)
