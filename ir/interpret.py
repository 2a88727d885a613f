"""The reference interpreter: runs a func on numpy arrays by each op's `reference`, its definition.

With `precision="f64"` every floating tensor is float64 and nothing is rounded in between, which is the ground on which
exact passes are judged; with `precision="declared"` every result is rounded to its declared element type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal

import numpy as np

from ingot.errors import IRError
from ingot.ir.dims import Expr, Sym, evaluate
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight

Precision = Literal["declared", "f64"]
_F32 = np.dtype(np.float32)


def solve_dims(types: Sequence[TensorType], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Values of the symbols that stand alone as a dim somewhere; every other dim is then checked against them.

    Raises IRError when a shape does not fit its type.
    """
    if len(types) != len(shapes):
        raise IRError(f"{len(shapes)} inputs for {len(types)} parameters")
    for type_, shape in zip(types, shapes):
        if type_.rank != len(shape):
            raise IRError(f"an input has shape {list(shape)} where {type_} is declared")
    env: dict[str, int] = {}
    pairs = [(t, d, n) for t, s in zip(types, shapes) for d, n in zip(t.dims, s)]
    for type_, dim, size in pairs:
        if isinstance(dim, Expr) and len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1:
            atom = dim.terms[0][0][0]
            if isinstance(atom, Sym) and env.setdefault(atom.name, size) != size:
                raise IRError(f"dimension {dim} is {env[atom.name]} in one input and {size} in another ({type_})")
    for type_, dim, size in pairs:
        if evaluate(dim, env) != size:
            raise IRError(f"an input has {size} where {type_} says {dim} = {evaluate(dim, env)}")
    return env


def run(module: Module, inputs: Sequence[np.ndarray] | Mapping[str, np.ndarray], *, func: Func | None = None,
        precision: Precision = "f64", observe: Callable[[Value, np.ndarray], None] | None = None,
        weights: MutableMapping[Weight, np.ndarray] | None = None) -> list[np.ndarray]:
    """The returns of `func` (the main one) for the given arrays, one per parameter in order or by name.

    observe: called with every value and its array as it is computed. weights: keeps the arrays of weights from one run to
    the next. Raises IRError naming the op that failed.
    """
    func = func or module.main
    names = [p.hint or "" for p in func.params]
    if isinstance(inputs, Mapping):
        missing = [n for n in names if n not in inputs]
        if missing:
            raise IRError(f"func @{func.name} needs an input for {', '.join('%' + n for n in missing)}")
        inputs = [inputs[n] for n in names]
    arrays = [np.asarray(a) for a in inputs]
    env = solve_dims([p.type for p in func.params], [a.shape for a in arrays])
    live: dict[Value, np.ndarray] = {}
    uses = {v: v.n_uses for op in func.ops for v in op.results} | {p: p.n_uses for p in func.params}
    for value, array in zip(func.params, arrays):
        live[value] = _settle(array, value.type, precision)
    consts: dict[Value, np.ndarray] = {}
    floats = np.dtype(np.float64 if precision == "f64" else np.float32)

    def load(value: Value) -> np.ndarray:
        if isinstance(value, Const):
            if value not in consts:
                array = weights.get(value.weight) if weights is not None else None
                if array is None:
                    array = value.weight.wide() if precision == "f64" else value.weight.materialize()
                    if weights is not None:
                        weights[value.weight] = array
                consts[value] = _settle(array, value.type, precision)
            return widen(consts[value], floats)
        return widen(live[value], floats)

    for op in func.ops:
        for value, array in zip(op.results, evaluate_op(op, op.map_operands(load), env, precision)):
            live[value] = array
            if observe is not None:
                observe(value, array)
        for value in op.operands:
            if value in uses:
                uses[value] -= 1
                if not uses[value]:
                    live.pop(value, None)
            elif isinstance(value, Const) and value.type.rank and len(value.users) == 1:
                consts.pop(value, None)
    return [consts[v] if v in consts else _settle(load(v), v.type, precision) for v in func.returns]


def evaluate_op(op: Op, inputs: Sequence[object], env: Mapping[str, int], precision: Precision) -> list[np.ndarray]:
    """One op on arrays given as `Op.reference` expects them; the results rounded to their types.

    Raises IRError naming the op when its reference fails or gives another shape than inferred.
    """
    try:
        with np.errstate(all="ignore"):
            out = op.bind(env).reference(*inputs)
    except IRError:
        raise
    except Exception as error:
        raise op.fail(f"the reference failed: {type(error).__name__}: {error}") from error
    outs = list(out) if isinstance(out, tuple | list) else [out]
    if len(outs) != len(op.results):
        raise op.fail(f"the reference gave {len(outs)} results, declared are {len(op.results)}")
    settled: list[np.ndarray] = []
    for value, array in zip(op.results, outs):
        array = np.asarray(array)
        expected = tuple(evaluate(d, env) for d in value.type.dims)
        if array.shape != expected:
            raise op.fail(f"the reference gave shape {array.shape}, the declared one is {expected}")
        settled.append(_settle(array, value.type, precision))
    return settled


def _settle(array: np.ndarray, type: TensorType, precision: Precision) -> np.ndarray:
    dtype = type.dtype.numpy
    if type.dtype.is_float and precision == "f64" and type.dtype.bits > 8:
        dtype = np.dtype(np.float64)
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def widen(array: np.ndarray, floats: np.dtype = _F32) -> np.ndarray:
    """Narrow floats as `floats`, sub-byte integers as int32; the rest as it is."""
    if array.dtype in (np.float32, np.float64) or array.dtype.kind in "biu":
        return array
    name = array.dtype.name
    return array.astype(np.int32 if name.startswith(("int", "uint")) else floats)
