"""The partition: what is one kernel, in which order, and who writes what."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from ingot.backends.triton.groups import Group, partition
from ingot.ir.module import Func, Module
from ingot.ir.text import parse_module, print_module
from ingot.testing import graphs
from tests.backends.triton.examples import example


def names(groups: list[Group]) -> list[list[str]]:
    return [[op.name for op in g.ops] for g in groups]


def test_a_decoder_layer_is_eight_groups() -> None:
    """Nine launches where keys are split: attention is two kernels then."""
    groups = partition(example("llama_layer").main)
    assert names(groups) == [["rms_norm"], ["linear"], ["rope", "cache.write", "cache.write"], ["attention"], ["linear"],
                             ["skip_rms_norm"], ["linear", "silu", "mul"], ["linear", "add"]]
    assert [len(g.variants[0].kernels) for g in groups] == [1, 1, 1, 2, 1, 1, 1, 1]


def legal(func: Func, groups: list[Group]) -> None:
    """Every value in memory has one writer, which comes before its readers; every result is there at the end."""
    written: set[object] = set(func.params)
    for group in groups:
        for value in group.outlined.inputs:
            assert value in written or value in func.module.consts.values()
        for value in group.outputs:
            assert value not in written
            written.add(value)
    assert {v for v in func.returns if v.op is not None} <= written


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_partitions_are_legal(module: Module) -> None:
    before = print_module(module)
    groups = partition(module.main)
    legal(module.main, groups)
    assert print_module(module) == before


def test_an_op_waits_for_its_newest_operand() -> None:
    """`e` and `s` could share a kernel by shape, but `s` needs the sum over what `e` makes."""
    module = parse_module("""
module @m {
  dim B in 1..8
  func @forward(%x: f32[B, 16], %y: f32[B, 16]) -> (f32[B, 16], f32[B, 16]) {
    %e = exp(%x) : f32[B, 16]
    %t = sum(%e) {axis = [0], keep = true} : f32[1, 16]
    %s = mul(%y, %t) : f32[B, 16]
    return %e, %s
  }
}
""")
    groups = partition(module.main)
    legal(module.main, groups)
    assert names(groups)[-1][-1] == "mul"


def test_equal_layers_have_equal_kernels() -> None:
    text = """
module @m {
  dim B in 1..8
  const @layers.0.norm.weight : f32[16] = memory()
  const @layers.1.norm.weight : f32[16] = memory()
  func @forward(%x: f32[B, 16]) -> (f32[B, 16]) {
    %n_1 = rms_norm(%x, w=@layers.0.norm.weight) : f32[B, 16]
    %t_1 = transpose(%n_1) {perm = [1, 0]} : f32[16, B]
    %u_1 = matmul(%n_1, %t_1) : f32[B, B]
    %v_1 = matmul(%u_1, %n_1) : f32[B, 16]
    %n_2 = rms_norm(%v_1, w=@layers.1.norm.weight) : f32[B, 16]
    return %n_2
  }
}
"""
    first, *_, last = partition(parse_module(text).main)
    assert first.variants[0].kernels[0].source.replace("%x", "%v").replace("x_ptr", "v_ptr").replace("x_at", "v_at") == (
        last.variants[0].kernels[0].source)


def test_why_torch_runs_an_op_is_said() -> None:
    module = parse_module("""
module @m {
  func @forward(%x: f32[4, 8]) -> (f32[4, 8]) {
    %c = cumsum(%x) : f32[4, 8]
    return %c
  }
}
""")
    (group,) = partition(module.main)
    assert not group.variants
    assert "cumsum" in group.reason
