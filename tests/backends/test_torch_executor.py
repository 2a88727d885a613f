"""The torch executor: lazily read weights, gradients, observers, clear errors."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from ingot.backends.torch import Executor, run
from ingot.errors import IRError, UnsupportedOp
from ingot.ir import interpret
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.op import OPS, Op
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Add, Gelu, Silu
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.rope import Rope
from ingot.ir.types import TensorType, bf16, f32, f64, i64
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight, derived

WIDTH = 160
"""Wide enough that a weight is not among the small ones that are kept."""


class Counted:
    """Weights that record when they are made and how many of their arrays are alive."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.alive: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def weight(self, name: str, rng: np.random.Generator) -> object:
        numbers = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH ** 0.5

        def make() -> np.ndarray:
            gc.collect()
            self.made.append(name)
            array = numbers.copy()
            self.alive = [r for r in self.alive if r() is not None] + [weakref.ref(array)]
            self.most = max(self.most, len(self.alive))
            return array

        return derived("test", make, type=TensorType(f32, (WIDTH, WIDTH)), key=name)


def stack(depth: int) -> tuple[Module, Counted]:
    """x + linear(silu(x)) `depth` times."""
    counted, rng = Counted(), np.random.default_rng(0)
    module = Module("stack")
    module.set_dim("B", 1, 8)
    func = module.add_func("forward")
    x: Value = func.add_param("x", TensorType(f32, (sym("B"), WIDTH)))
    b = Builder(func)
    for i in range(depth):
        w = module.add_const(f"w{i}", counted.weight(f"w{i}", rng))  # type: ignore[arg-type]
        x = b(Add(x, b(Linear(b(Silu(x)), w))))
    func.set_returns((x,))
    return module, counted


def inputs(rows: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(1).normal(size=(rows, WIDTH)).astype(np.float32)]


def test_weights_are_read_one_op_at_a_time() -> None:
    module, counted = stack(6)
    run(module, inputs())
    assert counted.made == [f"w{i}" for i in range(6)]
    assert counted.most <= 2


def test_kept_weights_are_read_once() -> None:
    module, counted = stack(3)
    executor = Executor(module, keep=True)
    first, second = executor.run(inputs())[0], executor.run(inputs())[0]
    assert len(counted.made) == 3
    assert torch.equal(first, second)


def test_only_live_values_are_kept() -> None:
    module, _ = stack(8)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def observe(value: Value, tensor: torch.Tensor) -> None:
        nonlocal alive, most
        alive = [r for r in alive if r() is not None] + [weakref.ref(tensor)]
        most = max(most, len(alive))

    with torch.no_grad():
        run(module, inputs(), observe=observe)
    assert most <= 3


def test_observer_sees_every_value_in_order() -> None:
    module, _ = stack(2)
    seen: dict[Value, torch.Tensor] = {}
    result = run(module, inputs(), observe=seen.__setitem__)[0]
    assert list(seen) == [r for op in module.main.ops for r in op.results]
    assert torch.equal(seen[module.main.returns[0]], result)


def test_parameters_given_replace_weights_and_get_gradients() -> None:
    module, _ = stack(2)
    x = torch.from_numpy(inputs()[0])
    w = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH ** 0.5
    executor = Executor(module, params={"w1": w.requires_grad_()})
    executor.run([x])[0].square().sum().backward()
    first = module.consts["w0"].weight.materialize()
    h = x + torch.nn.functional.silu(x) @ torch.from_numpy(first).T
    twin = w.detach().clone().requires_grad_()
    (h + torch.nn.functional.silu(h) @ twin.T).square().sum().backward()
    assert twin.grad is not None
    torch.testing.assert_close(w.grad, twin.grad)


def test_dtype_overrides_declared_floats() -> None:
    module = Module("narrow")
    func = module.add_func("forward")
    x = func.add_param("x", TensorType(bf16, (2, 32)))
    w = module.add_const("w", ArrayWeight(np.random.default_rng(0).normal(size=32).astype(bf16.numpy)))
    func.set_returns((Builder(func)(RmsNorm(x, w)),))
    given = [np.random.default_rng(1).normal(size=(2, 32)).astype(bf16.numpy)]
    exact = interpret.run(module, given)[0]
    wide = run(module, given, dtype=torch.float64)[0]
    narrow = run(module, given)[0]
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.bfloat16)
    assert np.abs(wide.numpy() - exact).max() < 1e-12
    assert 1e-4 < np.abs(narrow.double().numpy() - exact).max() < 3e-2


def test_inputs_by_name_and_missing_ones() -> None:
    module, _ = stack(1)
    x = inputs()[0]
    assert torch.equal(run(module, {"x": x})[0], run(module, [x])[0])
    with pytest.raises(IRError, match="needs an input for %x"):
        run(module, {"y": x})
    with pytest.raises(IRError, match="takes 1 inputs, 2 given"):
        run(module, [x, x])
    with pytest.raises(IRError, match="160"):
        run(module, [x[:, 1:]])


def test_unknown_parameter_is_refused() -> None:
    with pytest.raises(IRError, match="no weight @typo"):
        Executor(stack(1)[0], params={"typo": torch.zeros(1)})


def test_an_op_without_a_rule_is_named() -> None:
    class Strange(Op):
        x: Value

        def infer(self) -> TensorType:
            return self.x.type

    module = Module("strange")
    func = module.add_func("forward")
    func.set_returns((Builder(func)(Strange(func.add_param("x", TensorType(f32, (1,))))),))
    with pytest.raises(UnsupportedOp, match="add a rule for Strange in backends/torch/"):
        run(module, [np.zeros(1, np.float32)])
    assert "strange" not in OPS


def _double(op_of: object, *tensors: torch.Tensor) -> bool:
    """gradcheck, in float64, of an op over all its floating operands."""
    module = Module("grad")
    func = module.add_func("forward")
    params = [func.add_param(f"x{i}", TensorType(i64 if t.dtype == torch.int64 else f64, tuple(t.shape)))
              for i, t in enumerate(tensors)]
    func.set_returns((Builder(func)(op_of(*params)),))  # type: ignore[operator]
    executor = Executor(module)
    return bool(torch.autograd.gradcheck(lambda *xs: executor.run(xs)[0], tensors))


@pytest.mark.parametrize(
    "name", ["rms_norm", "layer_norm", "attention", "sinks and soft cap", "rope", "cache", "dequantize", "gelu"])
def test_rules_are_differentiable(name: str) -> None:
    g = torch.Generator().manual_seed(0)

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g).requires_grad_()

    pos = torch.tensor([[2, 3, 4]])
    checks = {
        "rms_norm": lambda: _double(lambda a, w: RmsNorm(a, w, eps=1e-3), x(2, 4), x(4)),
        "layer_norm": lambda: _double(lambda a, w, b: LayerNorm(a, w, b), x(2, 4), x(4), x(4)),
        "attention": lambda: _double(lambda q, k, v, p: Attention(q, k, v, p, scale=0.4, causal=True, window=3),
                                     x(1, 4, 3, 2), x(1, 2, 6, 2), x(1, 2, 6, 2), pos),
        "sinks and soft cap": lambda: _double(
            lambda q, k, v, p, s: Attention(q, k, v, p, None, None, s, scale=2.0, causal=True, softcap=1.5),
            x(1, 4, 3, 2), x(1, 2, 6, 2), x(1, 2, 6, 2), pos, x(4)),
        "rope": lambda: _double(lambda a, p, f: Rope(a, p, f), x(1, 2, 3, 6), pos, x(2)),
        "cache": lambda: _double(lambda c, n, p: CacheWrite(c, n, p), x(1, 2, 6, 2), x(1, 2, 3, 2), pos),
        "dequantize": lambda: _scales(x(1, 2)),
        "gelu": lambda: _double(lambda a: Gelu(a), x(2, 5)),
    }
    assert checks[name]()


def _scales(scale: torch.Tensor) -> bool:
    """gradcheck of a dequantize over its scales, given as a parameter in place of the weight."""
    module = Module("scales")
    func = module.add_func("forward")
    codes = module.add_const("codes", ArrayWeight(np.array([[1, 9, 200, 3]], np.uint8)))
    scales = module.add_const("scales", ArrayWeight(np.ones((1, 2))))
    func.set_returns((Builder(func)(Dequantize(codes, scales, format="int8", group=2, dtype=f64)),))
    return bool(torch.autograd.gradcheck(lambda s: Executor(module, params={"scales": s}).run([])[0], (scale,)))
