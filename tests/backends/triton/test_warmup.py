"""What a run would start is compiled before it runs: the launches of a run, and their compiling for a chip that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.warmup import Launch, compile_launch, launches
from ingot.ir.dims import evaluate
from ingot.ir.module import Module
from ingot.ir.text import parse_module

TEXT = """
module @m {
  dim B in 1..64
  const @w : f32[48, 64] = memory()
  func @forward(%x: f32[B, 64]) -> (f32[B, 48], f32[B, 64]) {
    %n = rms_norm(%x) : f32[B, 64]
    %y = linear(%n, @w) : f32[B, 48]
    return %y, %n
  }
}
"""


def module() -> Module:
    from ingot.ir.stand_in import StandIn

    made = parse_module(TEXT)
    for const in made.consts.values():
        const.weight = StandIn(const.type, const.weight.origin)
    return made


def started(rows: int) -> list[Launch]:
    compiled = TritonModule(module(), device="cpu")
    shapes = [[evaluate(d, {"B": rows}) for d in p.type.dims] for p in compiled.func.params]
    return launches(compiled, [torch.zeros(s, dtype=torch_dtype(p.type.dtype)) for s, p in zip(shapes, compiled.func.params)])


def test_the_launches_of_a_run_are_noted_without_starting_any() -> None:
    assert [found.name for found in started(1)] == ["rms_norm_kernel", "linear_kernel_row"]
    norm, product = started(5)
    assert product.name == "linear_kernel_few"
    assert norm.sizes == (5,)
    assert product.dtypes == (torch.float32,) * 3
    assert dict(product.settings)["enable_fp_fusion"]
    assert started(5) == [norm, product]


@pytest.mark.usefixtures("hopper")
def test_a_launch_is_compiled_as_a_start_would(tmp_path: Path) -> None:
    """By Triton's own way to a kernel, up to where the chip is wanted; into its cache, where the start finds it."""
    for found in started(1):
        assert compile_launch(found) == ""
        assert list(tmp_path.rglob(f"{found.name}.cubin"))


@pytest.mark.usefixtures("hopper")
def test_what_does_not_compile_is_said() -> None:
    found = started(1)[0]
    wrong = Launch(found.source.replace("tl.arange(0, ROWS)", "tl.arange(0, 3)"), found.name, found.dtypes, found.sizes,
                   found.settings)
    assert "rms_norm_kernel: " in compile_launch(wrong)
