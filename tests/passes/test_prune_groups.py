"""Coupled axes: the groups of known architectures, and that nothing is left of what was cut."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.ir.copy import copy_module
from ingot.ir.dims import sym
from ingot.ir.interpret import run
from ingot.ir.module import Builder, Module
from ingot.ir.ops.conv import Conv
from ingot.ir.ops.layout import Concat, Reshape, Slice, Split
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Add, Mul, Relu
from ingot.ir.ops.reduce import Softmax
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.passes.pruning.coupling import Coupling
from ingot.passes.pruning.cut import cut
from ingot.passes.pruning.groups import Group, groups
from ingot.passes.pruning.spaces import Space, joined, product, unify
from ingot.passes.recipes import TRACE
from tests.frontend.examples import imported, inputs_for

GATED = {"mlp": [(48, 1)] * 2, "heads": [(4, 2)] * 2, "kv": [(2, 1)] * 2, "width": [(32, 1)]}
WITH_KEYS = {"mlp": [(48, 1)] * 2, "heads": [(4, 1)] * 2, "kv": [], "width": [(32, 1)]}
KNOWN = {
    "llama": GATED, "qwen3": GATED, "gemma2": GATED, "phi3": GATED, "gpt_neox": WITH_KEYS,
    "gpt2": WITH_KEYS | {"mlp": [(128, 1)] * 2}, "vit": WITH_KEYS, "bert": WITH_KEYS | {"width": []},
    "resnet": {"mlp": [], "heads": [], "width": [], "conv": [(8, 1), (8, 1), (16, 1), (16, 1), (16, 1)]},
    "convnext": {"mlp": [(32, 1), (64, 1)], "heads": [], "width": [(8, 1), (16, 1)], "conv": []},
}
"""(units, blocks) of the groups of each kind, in graph order. The residual stream of the bare encoder is an output."""


def traced(name: str) -> Module:
    module = copy_module(imported(name)[0])
    run_pipeline(module, parse_pipeline(TRACE.removesuffix(",fuse")))
    return module


def some(chosen: list[Group], seed: int = 0) -> dict[Group, np.ndarray]:
    """Which units stay: all but a random quarter, as many in each block, one at least gone and one left."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in chosen:
        mask = np.ones((group.blocks, group.size // group.blocks), bool)
        for row in mask:
            row[rng.permutation(len(row))[:max(len(row) // 4, 1)]] = False
        kept[group] = mask.reshape(-1)
    return kept


def zeroed(module: Module, kept: dict[Group, np.ndarray]) -> None:
    """Set everything that goes with the units that do not stay to zero."""
    for group, mask in kept.items():
        for (const, axis), units in group.members.items():
            array = np.moveaxis(const.weight.materialize().copy(), axis, 0)
            array[(units >= 0) & ~mask[units]] = 0
            const.weight = ArrayWeight(np.moveaxis(array, 0, axis))


@pytest.mark.parametrize("name", KNOWN)
def test_groups_of_known_architectures(name: str) -> None:
    found = groups(Coupling(traced(name).main))
    assert {kind: [(g.size, g.blocks) for g in found if g.kind == kind] for kind in KNOWN[name]} == KNOWN[name]


@pytest.mark.parametrize(("name", "kind"), [
    *((n, k) for n in ("llama", "phi3", "qwen3", "gemma2") for k in ("mlp", "heads", "kv")), ("llama", "features"),
    ("gpt2", "mlp"), ("gpt2", "heads"), ("gpt_neox", "heads"), ("gpt_neox", "mlp"), ("bert", "heads"), ("vit", "heads"),
    ("resnet", "conv"), ("convnext", "mlp")])
def test_a_cut_model_computes_what_the_whole_one_does_with_zeros(name: str, kind: str) -> None:
    module = traced(name)
    coupling = Coupling(module.main)
    kept = some(groups(coupling, kinds=(kind,)))
    zeroed(module, kept)
    inputs = inputs_for(module, batch=2, length=6)
    before = run(module, inputs)
    size = sum(c.type.size for c in module.consts.values() if isinstance(c.type.size, int))
    cut(module.main, coupling, kept, made_by="prune")
    verify(module)
    assert sum(c.type.size for c in module.consts.values() if isinstance(c.type.size, int)) < size
    for a, b in zip(before, run(module, inputs), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gpt_neox", "gemma2", "convnext", "vit"])
def test_a_narrower_residual_stream_runs(name: str) -> None:
    module = traced(name)
    coupling = Coupling(module.main)
    kept = some(groups(coupling, kinds=("width",)))
    cut(module.main, coupling, kept, made_by="prune")
    verify(module)
    assert all(np.isfinite(y).all() for y in run(module, inputs_for(module, batch=2, length=6)))


def test_tied_weights_stay_tied() -> None:
    module = traced("gpt2")
    coupling = Coupling(module.main)
    cut(module.main, coupling, some(groups(coupling, kinds=("width",))), made_by="prune")
    table = module.consts["transformer.wte.weight"]
    assert table.type.dims == (96, 24)
    assert {op.name for op in table.users} == {"embedding", "linear"}


class Net:
    """A func over x [B, 6], with random weights."""

    def __init__(self, *dims: int) -> None:
        self.module = Module("net")
        self.module.set_dim("B", 1, 4)
        self.func = self.module.add_func("forward")
        self.x = self.func.add_param("x", TensorType(f32, (sym("B"), *dims)))
        self.b = Builder(self.func)
        self.rng = np.random.default_rng(0)

    def const(self, name: str, *shape: int) -> Value:
        return self.module.add_const(name, ArrayWeight(self.rng.normal(size=shape).astype(np.float32), source="memory()"))

    def linear(self, x: Value, name: str, out: int) -> Value:
        width = x.type.dims[-1]
        assert isinstance(width, int)
        return self.b(Linear(x, self.const(name, out, width)))

    def groups(self, *returns: Value) -> list[Group]:
        self.func.set_returns(returns)
        return groups(Coupling(self.func))


def places(group: Group) -> dict[str, list[int]]:
    """Where the first unit of a group stands: `weight:axis` -> positions."""
    return {f"{const.name}:{axis}": np.flatnonzero(units == 0).tolist() for (const, axis), units in group.members.items()}


def test_a_fused_gate_is_cut_in_both_halves() -> None:
    net = Net(6)
    up, gate = net.b.add(Split(net.linear(net.x, "fused", 8), (4, 4))).results
    found = net.groups(net.linear(net.b(Mul(up, net.b(Relu(gate)))), "down", 6))
    assert [places(g) for g in found] == [{"fused:0": [0, 4], "down:1": [0]}]


def test_concatenated_channels_are_told_apart() -> None:
    net = Net(6)
    a, b = net.b(Relu(net.linear(net.x, "a", 3))), net.linear(net.x, "b", 4)
    found = net.groups(net.linear(net.b(Concat((a, b, a))), "out", 6))
    assert [places(g) for g in found] == [{"a:0": [0], "out:1": [0, 7]}, {"b:0": [0], "out:1": [3]}]


def test_a_slice_takes_its_part_along() -> None:
    net = Net(6)
    part = net.b(Slice(net.linear(net.x, "w", 10), 1, 2, 6))
    found = net.groups(net.linear(part, "out", 6))
    coupling = Coupling(net.func)
    kept = {g: np.arange(g.size) % 2 == 0 for g in groups(coupling)}
    assert {g.size for g in found} == {2, 4}
    cut(net.func, coupling, kept, made_by="prune")
    verify(net.module)
    assert net.module.consts["w"].type.dims == (5, 6)
    assert net.module.consts["out"].type.dims == (6, 2)


def test_residual_sums_couple_and_outputs_hold() -> None:
    net = Net(6)
    h = net.linear(net.x, "in", 5)
    h = net.b(Add(h, net.linear(h, "inner", 5)))
    found = net.groups(net.linear(h, "out", 6))
    assert [places(g) for g in found] == [{"in:0": [0], "inner:0": [0], "inner:1": [0], "out:1": [0]}]
    net = Net(6)
    assert net.groups(net.linear(net.x, "in", 5)) == []


def test_heads_are_cut_where_a_reshape_makes_them() -> None:
    net = Net(6)
    h = net.b(Reshape(net.linear(net.x, "w", 12), (net.x.type.dims[0], 3, 4)))
    h = net.b(Reshape(net.b(Relu(h)), (net.x.type.dims[0], 12)))
    found = net.groups(net.linear(h, "out", 6))
    assert [(g.size, places(g)["w:0"]) for g in found] == [(3, [0, 1, 2, 3]), (4, [0, 4, 8])]


def test_what_mixes_channels_holds_them() -> None:
    net = Net(6)
    assert net.groups(net.linear(net.b(Softmax(net.linear(net.x, "w", 8))), "out", 6)) == []


@pytest.mark.parametrize(("groups_", "shape", "expected"), [
    (8, (8, 1, 3), [{"in:0": [0], "w:0": [0], "out:1": [0]}]),  # depthwise
    (2, (8, 4, 3), [{"in:0": [0, 1, 2, 3], "w:0": [0, 1, 2, 3], "out:1": [0, 1, 2, 3]}, {"in:0": [0, 4], "w:1": [0]},
                    {"w:0": [0, 4], "out:1": [0, 4]}]),
])
def test_grouped_convolutions(groups_: int, shape: tuple[int, ...], expected: list[dict[str, list[int]]]) -> None:
    net = Net(3, 9)

    def conv(x: Value, name: str, dims: tuple[int, ...], groups: int) -> Value:
        return net.b(Conv(x, net.const(name, *dims), stride=(1,), padding=(1, 1), dilation=(1,), groups=groups))

    y = conv(net.b(Relu(conv(conv(net.x, "in", (8, 3, 3), 1), "w", shape, groups_))), "out", (3, 8, 3), 1)
    found = net.groups(y)
    assert sorted(map(str, map(places, found))) == sorted(map(str, expected))
    coupling = Coupling(net.func)
    chosen = groups(coupling, kinds=("conv",))
    kept = some(chosen)
    zeroed(net.module, kept)
    inputs = {"x": net.rng.normal(size=(2, 3, 9)).astype(np.float32)}
    before = run(net.module, inputs)
    cut(net.func, coupling, kept, made_by="prune")
    verify(net.module)
    np.testing.assert_allclose(run(net.module, inputs)[0], before[0], rtol=1e-9, atol=1e-9)


def test_spaces_divide_as_finely_as_either() -> None:
    a, b = product([Space(2), Space(6)]), product([Space(4), Space(3)])
    unify(a, b)
    assert [(atom.size, reason) for atom, reason in a.atoms()] == [(2, ""), (2, ""), (3, "")]
    c, d = joined([Space(2), Space(6)]), joined([Space(5), Space(3)])
    unify(c, d)
    assert [atom.size for atom, _ in c.atoms()] == [atom.size for atom, _ in d.atoms()] == [2, 3, 3]


def test_a_sum_meets_a_product() -> None:
    heads, size = Space(6), Space(4)
    unify(joined([Space(16), Space(8)]), product([heads, size]))
    assert [atom.size for atom, _ in heads.atoms()] == [4, 2]
    assert not any(reason for atom, reason in size.atoms())


def test_divisions_that_do_not_fit_are_held() -> None:
    a, b = product([Space(4), Space(3)]), product([Space(3), Space(4)])
    unify(a, b)
    assert all(reason for atom, reason in a.atoms())
