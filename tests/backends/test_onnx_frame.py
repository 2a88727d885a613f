"""The frame of the ONNX backend: lowering on demand, absorbed ops, names, dims, errors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from ingot.backends.onnx import lower, registry, run, write
from ingot.backends.onnx.lowering import Lowering
from ingot.backends.onnx.registry import Decline
from ingot.errors import IRError, UnsupportedOp
from ingot.ir import interpret
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Size
from ingot.ir.ops.layout import Reshape, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.ops.pointwise import Add, Mul, Neg, Silu
from ingot.ir.ops.rope import Rope
from ingot.ir.types import TensorType, bf16, f16, f32, i64
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight

B, S = sym("B"), sym("S")


class Made:
    """A module, its func and a builder."""

    def __init__(self) -> None:
        self.module = Module("made")
        self.module.set_dim("B", 1, 8)
        self.module.set_dim("S", 1, 64)
        self.func = self.module.add_func("forward")
        self.b = Builder(self.func)

    def param(self, name: str, *dims: object, dtype: object = f32) -> Value:
        return self.func.add_param(name, TensorType(dtype, dims))  # type: ignore[arg-type]

    def weight(self, name: str, *shape: int) -> Value:
        return self.module.add_const(name, ArrayWeight(np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)))

    def returns(self, *values: Value) -> Made:
        self.func.set_returns(values)
        return self


def kinds(module: Module, **options: object) -> Counter[str]:
    return Counter(node.op_type for node in lower(module, **options).model.graph.node)  # type: ignore[arg-type]


def test_what_nobody_asks_for_is_not_lowered() -> None:
    m = Made()
    x = m.param("x", B, 4)
    m.b(Linear(x, m.weight("unused", 3, 4)))
    m.returns(m.b(Neg(x)))
    lowered = lower(m.module)
    assert [n.op_type for n in lowered.model.graph.node] == ["Neg"]
    assert lowered.weights == {}


def test_equal_nodes_are_made_once() -> None:
    m = Made()
    pos = m.param("pos", B, S, dtype=i64)
    freq = m.weight("freq", 2)
    xs = [m.b(Rope(m.param(f"x{i}", B, 2, S, 4), pos, freq)) for i in range(4)]
    m.returns(*xs)
    count = kinds(m.module)
    assert (count["Cos"], count["Sin"], count["RotaryEmbedding"]) == (1, 1, 4)


def test_layers_share_one_mask() -> None:
    m = Made()
    q, kv = m.param("q", B, 2, S, 4), m.param("kv", B, 1, 16, 4)
    pos = m.param("pos", B, S, dtype=i64)
    for _ in range(3):
        q = m.b(Attention(q, kv, kv, pos, scale=0.5, causal=True))
    m.returns(q)
    count = kinds(m.module, opset_only=True)
    assert (count["Attention"], count["GreaterOrEqual"]) == (3, 1)


def test_a_rule_may_absorb_its_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(op: Mul, lo: Lowering) -> str:
        silu = op.x.op
        if not isinstance(silu, Silu):
            raise Decline("no gate")
        return lo.emit("Fused", lo(silu.x), lo(op.y), domain="com.microsoft")

    monkeypatch.setitem(registry.CONTRIB, Mul, [gated])
    monkeypatch.setitem(registry.CONTRIB, Silu, [])
    m = Made()
    gate, up = m.param("gate", B, 4), m.param("up", B, 4)
    active = m.b(Silu(gate))
    alone = m.b(Mul(active, up))
    m.returns(alone)
    assert kinds(m.module) == {"Fused": 1}
    assert kinds(m.module, opset_only=True) == {"Sigmoid": 1, "Mul": 2}
    m.returns(alone, active)
    assert kinds(m.module) == {"Fused": 1, "Sigmoid": 1, "Mul": 1}


def test_a_rule_may_provide_an_earlier_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def skip_norm(op: RmsNorm, lo: Lowering) -> str:
        add = op.x.op
        if not isinstance(add, Add):
            raise Decline("no sum")
        out, total = lo.emit_many("Both", lo(add.x), lo(add.y), n_out=2, domain="com.microsoft")
        lo.provide(op.x, total)
        return out

    monkeypatch.setitem(registry.CONTRIB, RmsNorm, [skip_norm])
    m = Made()
    x, y = m.param("x", B, 4), m.param("y", B, 4)
    total = m.b(Add(x, y))
    m.returns(m.b(Add(m.b(Neg(m.b(RmsNorm(total, eps=0.1)))), total)), m.b(RmsNorm(total, eps=0.2)))
    # The second norm of the same sum finds it provided, declines and reads it.
    assert kinds(m.module) == {"Both": 1, "Neg": 1, "Add": 1, "RMSNormalization": 1}


def test_a_declined_rule_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecided(op: Neg, lo: Lowering) -> str:
        lo.emit("Useless", lo(op.x))
        lo.provide(op.x, lo.emit("Wrong", lo.const(1.0, f32)))
        raise Decline("changed my mind")

    monkeypatch.setitem(registry.CONTRIB, Neg, [undecided])
    m = Made()
    x = m.param("x", B, 4)
    m.returns(m.b(Neg(m.b(Silu(x)))))
    count = kinds(m.module)
    assert (count["Neg"], count["Wrong"], count["Useless"], count.total()) == (1, 0, 0, 2)


def test_a_graph_of_any_depth_is_lowered() -> None:
    m = Made()
    x = m.param("x", B)
    for _ in range(3000):
        x = m.b(Neg(x))
    assert kinds(m.returns(x).module) == {"Neg": 3000}


def test_values_keep_their_names() -> None:
    m = Made()
    x = m.param("x", B, 4)
    hidden = m.b(Linear(x, m.weight("l0.w", 4, 4)), hint="hidden")
    m.returns(m.b(Neg(hidden), hint="logits"))
    graph = lower(m.module).model.graph
    assert [o.name for o in graph.output] == ["logits"]
    assert {o for n in graph.node for o in n.output} == {"hidden", "logits"}
    assert [n.name for n in graph.node] == ["hidden", "logits"]


def test_outputs_may_be_inputs_weights_or_repeated() -> None:
    m = Made()
    x = m.param("x", B, 2)
    y = m.b(Neg(x), hint="y")
    w = m.weight("w", 2)
    m.returns(x, y, y, y, w, m.b(Reshape(x, (B, 2))))
    given = [np.arange(4, dtype=np.float32).reshape(2, 2)]
    for got, wanted in zip(run(m.module, given), interpret.run(m.module, given), strict=True):
        assert np.array_equal(got, wanted)


def test_output_names_may_be_chosen() -> None:
    m = Made()
    m.returns(m.b(Neg(m.param("x", B)), hint="y"))
    assert [o.name for o in lower(m.module, output_names=["logits"]).model.graph.output] == ["logits"]
    with pytest.raises(IRError, match="needs 1 output names"):
        lower(m.module, output_names=["x"])
    with pytest.raises(IRError, match="needs 1 output names"):
        lower(m.module, output_names=["a", "b"])


def test_symbols_are_names_in_the_ports() -> None:
    m = Made()
    x = m.param("x", B, S, 4)
    m.returns(m.b(Reshape(x, (B * S, 4))))
    graph = lower(m.module).model.graph
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (graph.input[0], graph.output[0])]
    assert dims == [["B", "S", 4], ["B*S", 4]]


def test_a_symbol_no_input_shows_is_an_error() -> None:
    m = Made()
    m.param("x", 2 * S)
    m.returns(m.b(Size(S)))
    with pytest.raises(IRError, match="dimension S is not the size of an axis"):
        lower(m.module)


def test_reshapes_of_one_unknown_are_constants() -> None:
    m = Made()
    x = m.param("x", B, S, 8)
    m.returns(m.b(Reshape(m.b(Transpose(m.b(Reshape(x, (B, S, 2, 4))), (0, 2, 1, 3))), (B, 2 * S, 4))))
    assert set(kinds(m.module)) == {"Reshape", "Transpose"}


def test_narrow_floats_cross_the_border_as_documented() -> None:
    m = Made()
    a, b = m.param("a", B, dtype=f16), m.param("b", B, dtype=bf16)
    m.returns(m.b(Neg(a)), m.b(Neg(b)))
    graph = lower(m.module).model.graph
    types = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert types == [half, single, half, single]


def test_an_op_without_a_rule_is_named() -> None:
    class Strange(Op):
        x: Value

        def infer(self) -> TensorType:
            return self.x.type

    m = Made()
    op = m.b.add(Strange(m.param("x", B)))
    op.loc = "model.py:7"
    m.returns(op.result)
    with pytest.raises(UnsupportedOp, match=r"(?s)model\.py:7: .*add a rule for Strange to backends/onnx/rules_"):
        lower(m.module)


def test_a_cycle_made_by_a_rule_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def looping(op: Neg, lo: Lowering) -> str:
        out, inner = lo.emit_many("Loop", lo(op.x), n_out=2)
        lo.provide(op.x, inner)
        return out

    monkeypatch.setitem(registry.CONTRIB, Neg, [looping])
    m = Made()
    m.returns(m.b(Neg(m.b(Silu(m.param("x", B))))))
    with pytest.raises(RuntimeError, match="need each other"):
        lower(m.module)


def test_lowering_leaves_the_module_as_it_was() -> None:
    m = Made()
    q = m.param("q", B, 2, S, 4)
    sinks = m.weight("sinks", 2)
    m.returns(m.b(Attention(q, q, q, None, None, None, sinks, scale=0.5, causal=True)))
    epoch, uses = m.module.epoch, sinks.n_uses
    lower(m.module)
    assert (m.module.epoch, sinks.n_uses, len(m.func.ops)) == (epoch, uses, 1)


def test_several_results_are_told_apart(tmp_path: object) -> None:
    m = Made()
    first, second = m.b.add(Split(m.param("x", B, 4), (1, 3))).results
    m.returns(second, first)
    given = [np.arange(8, dtype=np.float32).reshape(2, 4)]
    got = run(m.module, given)
    assert np.array_equal(got[0], given[0][:, 1:])
    assert np.array_equal(got[1], given[0][:, :1])
    write(m.module, str(tmp_path))
