"""What a case is: a small module around one op, with random inputs.

A case is a function of a `Case`, which makes parameters and weights, inserts ops and returns the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.ir.dims import Dim, evaluate, sym
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.types import DType, TensorType, f32, u3
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, derived

B, S, T = sym("B"), sym("S"), sym("T")
SIZES: tuple[dict[str, int], ...] = ({"B": 2, "S": 5, "T": 7}, {"B": 1, "S": 1, "T": 1})
"""What the symbols stand for, in the runs of every case."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 3.0, size=shape)


def bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape) < 0.5


def between(least: int, most: int) -> Draw:
    """Integers from least to most, both possible."""
    return lambda rng, shape: rng.integers(least, most + 1, size=shape)


class Case:
    """The module under construction, and how to draw its inputs."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.module = Module("case")
        for name in "BST":
            self.module.set_dim(name, 1, 64)
        self.func = self.module.add_func("forward")
        self.builder = Builder(self.func)
        self.draws: list[Draw] = []

    def x(self, *dims: Dim, dtype: DType = f32, draw: Draw = normal, name: str = "x") -> Value:
        """A parameter."""
        self.draws.append(draw)
        return self.func.add_param(f"{name}{len(self.draws)}", TensorType(dtype, dims))

    def w(self, *shape: int, dtype: DType = f32, draw: Draw = normal) -> Const:
        """A weight."""
        array = draw(self.rng, shape).astype(dtype.numpy)
        # An array of u8 would be taken for u8, so the type of 3-bit codes is said.
        weight = ArrayWeight(array) if dtype != u3 else derived("test", lambda: array, type=TensorType(u3, shape), key="w")
        return self.module.add_const("w", weight)

    def __call__(self, op: Op) -> Value:
        return self.builder(op)

    def inputs(self, sizes: dict[str, int]) -> list[np.ndarray]:
        arrays = []
        for param, draw in zip(self.func.params, self.draws):
            shape = tuple(evaluate(d, sizes) for d in param.type.dims)
            arrays.append(draw(self.rng, shape).astype(param.type.dtype.numpy))
        return arrays


@dataclass(frozen=True)
class OpCase:
    """op: the op class's name. name: of the case. build: see the module docstring. sizes: runs, when not SIZES."""

    op: str
    name: str
    build: Callable[[Case], Value | tuple[Value, ...]]
    sizes: tuple[dict[str, int], ...] = SIZES
    skip: tuple[str, ...] = ()
    """Backends that are not asked."""

    def make(self) -> Case:
        case = Case(sum(map(ord, self.op + self.name)))
        results = self.build(case)
        case.func.set_returns(results if isinstance(results, tuple) else (results,))
        return case


CASES: list[OpCase] = []


def case(cls: type[Op], name: str, build: Callable[[Case], Value | tuple[Value, ...]], *,
         sizes: tuple[dict[str, int], ...] = SIZES, skip: tuple[str, ...] = ()) -> None:
    CASES.append(OpCase(cls.name, name, build, sizes, skip))


def results(op: Op, c: Case) -> tuple[Value, ...]:
    return c.builder.add(op).results
