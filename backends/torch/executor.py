"""The eager executor: a func run op by op on torch tensors, with only live values and one op's weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import ingot.backends.torch.rules  # noqa: F401  (registers the rules)
from ingot.backends.decompose import decomposed
from ingot.backends.torch.registry import find
from ingot.backends.torch.tensors import to_tensor, torch_dtype
from ingot.errors import IngotError, IRError, UnsupportedOp
from ingot.ir.dims import evaluate
from ingot.ir.interpret import solve_dims
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.types import dtype_of
from ingot.ir.value import Const, Value

Observer = Callable[[Value, torch.Tensor], None]
Inputs = Sequence[Any] | Mapping[str, Any]
_SMALL = 1 << 16
_NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)


class Executor:
    """Runs one func of a module; holds loaded weights between runs when `keep`.

    dtype: what all floating values of more than 8 bits are computed in (torch.float32, torch.float64), or None for
    their declared types, where f16 and bf16 arithmetic is done in f32 and rounded. params: tensors by weight name that
    stand in for the module's weights and may require gradients. Everything is differentiable by autograd.
    """

    def __init__(self, module: Module, *, func: Func | None = None, device: torch.device | str = "cpu",
                 dtype: torch.dtype | None = None, keep: bool = False,
                 params: Mapping[str, torch.Tensor] | None = None) -> None:
        self.module = module
        self.func = func or module.main
        self.device = torch.device(device)
        self.dtype = dtype
        self.keep = keep
        self.params = dict(params or {})
        self._kept: dict[str, torch.Tensor] = {}
        self._expanded: dict[Op, tuple[Func, tuple[Value, ...]] | None] = {}
        unknown = sorted(set(self.params) - set(module.consts))
        if unknown:
            raise IRError(f"module @{module.name} has no weight {', '.join('@' + n for n in unknown)}")

    def run(self, inputs: Inputs, *, observe: Observer | None = None,
            sizes: Mapping[str, int] | None = None) -> list[torch.Tensor]:
        """The func's returns for one array or tensor per parameter, in order or by name.

        observe: called with every value and its tensor right after it is computed. sizes: values of the dims, where the
        shapes of the inputs do not give them all. Raises IRError when inputs are missing or do not fit the declared shapes,
        UnsupportedOp for an op without a rule.
        """
        tensors = self._inputs(inputs)
        env = sizes or solve_dims([p.type for p in self.func.params], [tuple(t.shape) for t in tensors])
        return self._run(self.func, tensors, env, observe)

    def weight(self, const: Const) -> torch.Tensor:
        """The tensor of a weight on the executor's device, from `params`, from memory, or read now."""
        if const.name in self.params:
            found = self.params[const.name]
            return found.to(torch_dtype(const.type.dtype, self.dtype)) if found.is_floating_point() else found
        if const.name in self._kept:
            return self._kept[const.name]
        tensor = to_tensor(const.weight.materialize(), const.type.dtype)
        tensor = tensor.to(self.device, torch_dtype(const.type.dtype, self.dtype))
        if self.keep or tensor.nbytes <= _SMALL:
            self._kept[const.name] = tensor
        return tensor

    def _inputs(self, inputs: Inputs) -> list[torch.Tensor]:
        params = self.func.params
        if isinstance(inputs, Mapping):
            missing = [p.hint for p in params if p.hint not in inputs]
            if missing:
                raise IRError(f"func @{self.func.name} needs an input for {', '.join(f'%{n}' for n in missing)}")
            inputs = [inputs[p.hint or ""] for p in params]
        if len(inputs) != len(params):
            raise IRError(f"func @{self.func.name} takes {len(params)} inputs, {len(inputs)} given")
        return [self._tensor(x).to(self.device, torch_dtype(p.type.dtype, self.dtype)) for x, p in zip(inputs, params)]

    @staticmethod
    def _tensor(given: Any) -> torch.Tensor:
        if isinstance(given, torch.Tensor):
            return given
        array = np.asarray(given)
        return to_tensor(array, dtype_of(array.dtype))

    def _run(self, func: Func, inputs: Sequence[torch.Tensor], env: Mapping[str, int],
             observe: Observer | None) -> list[torch.Tensor]:
        live: dict[Value, torch.Tensor] = dict(zip(func.params, inputs))
        uses = {v: v.n_uses for v in [*func.params, *(r for op in func.ops for r in op.results)]}

        def load(value: Value) -> torch.Tensor:
            return self.weight(value) if isinstance(value, Const) else live[value]

        for op in func.ops:
            for value, tensor in zip(op.results, self._evaluate(op, op.map_operands(load), env), strict=True):
                if observe is not None:
                    observe(value, tensor)
                if uses[value]:
                    live[value] = tensor
            for value in op.operands:
                if value in uses:
                    uses[value] -= 1
                    if not uses[value]:
                        live.pop(value, None)
        return [load(v) for v in func.returns]

    def _evaluate(self, op: Op, inputs: tuple[Any, ...], env: Mapping[str, int]) -> list[torch.Tensor]:
        found = find(type(op))
        if found is None:
            return self._decompose(op, inputs, env)
        fn, native = found
        try:
            out = fn(op.bind(env), *(inputs if native else map(_widen, inputs)))
        except IngotError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise op.fail(f"the torch rule failed: {error}") from error
        outs = list(out) if isinstance(out, tuple | list) else [out]
        for value, tensor in zip(op.results, outs, strict=True):
            expected = tuple(evaluate(d, env) for d in value.type.dims)
            if tuple(tensor.shape) != expected:
                raise op.fail(f"the torch rule gave shape {tuple(tensor.shape)}, the declared one is {expected}")
        return [tensor.to(self.device, torch_dtype(value.type.dtype, self.dtype)) for value, tensor in zip(op.results, outs)]

    def _decompose(self, op: Op, inputs: tuple[Any, ...], env: Mapping[str, int]) -> list[torch.Tensor]:
        if op not in self._expanded:
            self._expanded[op] = decomposed(op)
        expanded = self._expanded[op]
        if expanded is None:
            raise UnsupportedOp(f"the torch backend cannot run {op.name}", where=op.loc,
                                hint=f"add a rule for {type(op).__name__} in backends/torch/")
        func, outer = expanded
        flat = [x for given in inputs if given is not None for x in (given if isinstance(given, tuple) else (given,))]
        by_value = dict(zip(op.operands, flat))
        return self._run(func, [by_value[v] for v in outer], env, None)


def run(module: Module, inputs: Inputs, *, observe: Observer | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """`Executor(module, device=device, dtype=dtype).run(inputs, observe=observe)`: weights are read and dropped op by op."""
    return Executor(module, device=device, dtype=dtype).run(inputs, observe=observe)


def _widen(given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(map(_widen, given))
    return given.float() if given is not None and given.dtype in _NARROW else given
