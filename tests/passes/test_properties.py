"""Random graphs: clean-up and recognition are exact, leave a verified graph, and find nothing to do in their own result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingot.ir.dims import sym
from ingot.ir.module import Builder, Module
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.layout import Concat, Expand, Reshape, Slice, Split, Transpose
from ingot.ir.ops.pointwise import Add, Cast, Div, Maximum, Mul, Neg, Pow, Sigmoid, Sub, Tanh, Where
from ingot.ir.ops.reduce import Mean, Softmax
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import TensorType, bf16, bool_, f32
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline

PIPELINES = ("canonicalize", "cse", "dce", "fold-constants", "recognize", "fuse",
             "canonicalize,fold-constants,cse,recognize,fuse")
B, S = sym("B"), sym("S")


@st.composite
def graphs(draw: st.DrawFn) -> Module:
    """Moves and elementwise ops over [B, S, 4] and its relatives, some twice in a row, with weights, scalars and shared values.

    Everything that nothing reads is returned, so that no mistake lies in dead code.
    """
    module = Module("random")
    module.set_dim("B", 1, 4)
    module.set_dim("S", 1, 8)
    func = module.add_func("forward")
    b = Builder(func)
    values: list[Value] = [func.add_param("x", TensorType(f32, (B, S, 4))), func.add_param("y", TensorType(f32, (B, S, 4)))]
    weight = np.random.default_rng(draw(st.integers(0, 99))).normal(size=4).astype(np.float32)
    values.append(module.add_const("w", ArrayWeight(weight)))
    for _ in range(draw(st.integers(2, 8))):
        step = draw(st.sampled_from(STEPS))
        values += step(draw, b, draw(st.sampled_from(values)), values)
        if draw(st.booleans()):
            values += step(draw, b, values[-1], values)
    func.set_returns([v for v in values if not v.n_uses and v.op is not None] or values[:1])
    return module


def _scalar(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    number = b(Scalar(draw(st.sampled_from((0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 1.702))), f32))
    op = draw(st.sampled_from((Add, Sub, Mul, Maximum)))
    return [b(op(x, number) if draw(st.booleans()) else op(number, x))]


def _halved(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Div(x, b(Scalar(draw(st.sampled_from((2.0, 3.0, 7.0))), f32))))]


def _square(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Pow(x, b(Scalar(draw(st.sampled_from((1.0, 2.0, 3.0))), f32))))]


def _unary(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(draw(st.sampled_from((Neg, Sigmoid, Tanh)))(x))]


def _binary(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    alike = [v for v in values if v.type == x.type or v.type.dims == x.type.dims[-1:]]
    op, other = draw(st.sampled_from((Add, Mul, Sub))), draw(st.sampled_from(alike))
    return [b(op(x, other)), b(op(other, x))]


def _where(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Where(b(Full(x.type.dims, draw(st.sampled_from((0, 1))), bool_)), x, b(Neg(x))))]


def _reshape(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    shapes = [x.type.dims, (*x.type.dims, 1), (1, *x.type.dims), (x.type.size,)]
    if x.type.dims[-1:] == (4,):
        shapes.append((*x.type.dims[:-1], 2, 2))
    if x.type.dims[-2:] == (2, 2):
        shapes.append((*x.type.dims[:-2], 4))
    return [b(Reshape(x, draw(st.sampled_from(shapes))))]


def _transpose(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Transpose(x, tuple(draw(st.permutations(range(x.type.rank))))))]


def _cut(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    size = x.type.dims[-1]
    if not isinstance(size, int) or size < 2:
        return []
    at = draw(st.integers(1, size - 1))
    if draw(st.booleans()):
        return list(b.add(Split(x, (at, size - at))).results)
    last = x.type.rank - 1
    return [b(Slice(x, last, 0, at)), b(Slice(x, draw(st.sampled_from((-1, last))), at, size))]


def _join(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    alike = [v for v in values if v.type.rank == x.type.rank and v.type.dims[:-1] == x.type.dims[:-1]]
    return [b(Concat(tuple(draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3)))))]


def _expand(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Expand(x, (2, *x.type.dims)))] if x.type.rank < 5 else []


def _narrow(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Cast(b(Cast(x, bf16)), f32))]


def _norm(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    """Something like an RMS norm: over the last axis or another, of x or of something alike."""
    axis = draw(st.integers(-x.type.rank, -1))
    other = draw(st.sampled_from([v for v in values if v.type == x.type]))
    mean = b(Mean(b(Mul(x, other)), (axis,), True))
    shifted = b(Add(mean, b(Scalar(9.0, f32))))
    root = b(Pow(shifted, b(Scalar(draw(st.sampled_from((0.5, -0.5))), f32))))
    return [b(Mul(x, root))]


def _soft(draw: st.DrawFn, b: Builder, x: Value, values: list[Value]) -> list[Value]:
    return [b(Softmax(x, draw(st.integers(-x.type.rank, x.type.rank - 1))))]


STEPS = (_scalar, _halved, _square, _unary, _binary, _where, _reshape, _transpose, _cut, _join, _expand, _narrow, _norm, _soft)


@pytest.mark.parametrize("pipeline", PIPELINES)
@given(module=graphs())
@settings(max_examples=80, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_exact_and_idempotent(pipeline, check_exact, module):
    check_exact(module, pipeline)
    text = print_module(module)
    for p in parse_pipeline(pipeline):
        p.run(module, Context())
    assert print_module(module) == text
    assert print_module(parse_module(text)) == text
