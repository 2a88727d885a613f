"""A traced torch program, op by op, as a func of the graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from ingot.errors import IngotError, IRError, UnsupportedOp
from ingot.frontend.aten import RULES, Graph
from ingot.frontend.aten.registry import TORCH_DTYPES
from ingot.frontend.dimensions import Sizes
from ingot.frontend.tensors import held
from ingot.ir.dims import Dim
from ingot.ir.module import Module
from ingot.ir.types import DType, TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight

WeightOf = Callable[[str, torch.Tensor], Weight]
"""The handle for a parameter or buffer, from its full name and the tensor (on the meta device or not)."""

_SKIPPED = frozenset({"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg",
                      "aten.sym_constrain_range_for_size.default"})
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_HERE = str(Path(__file__).parent)


def import_program(program: ExportedProgram, *, name: str, sizes: Sizes, weight_of: WeightOf, tied: Mapping[str, str],
                   prefix: str = "", outputs: tuple[str, ...] = ()) -> Module:
    """The module of an exported program.

    weight_of: called once per parameter or buffer that is used, with its name without `prefix`. tied: names of tensors ->
    the first name of the same tensor. outputs: names of the returned values, as far as given. Raises UnsupportedOp for an
    op without a rule.
    """
    return _Importer(program, name, sizes, weight_of, tied, prefix).run(outputs)


class _Importer:
    def __init__(self, program: ExportedProgram, name: str, sizes: Sizes, weight_of: WeightOf, tied: Mapping[str, str],
                 prefix: str) -> None:
        self.program = program
        self.sizes = sizes
        self.weight_of = weight_of
        self.tied = tied
        self.prefix = prefix
        self.consts: dict[str, Const] = {}
        self.module = Module(name)
        self.graph = Graph(self.module.add_func("forward"))
        self.values: dict[Node, Any] = {}

    def run(self, outputs: tuple[str, ...]) -> Module:
        for spec in self.program.graph_signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.USER_INPUT):
                continue
            raise UnsupportedOp(f"the model takes an input of kind {spec.kind.name.lower()}")
        inputs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholder(node, inputs[node.name].kind, inputs[node.name].target)
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                self.output(node, outputs)
            else:
                raise UnsupportedOp(f"the traced program has a node of kind {node.op}", where=location(node))
        self.module.main.drop_dead()
        return self.module

    def placeholder(self, node: Node, kind: InputKind, target: str | None) -> None:
        if kind == InputKind.USER_INPUT:
            if isinstance(node.meta["val"], torch.Tensor):
                self.values[node] = self.graph.func.add_param(node.name, self.type_of(node.meta["val"]))
            return
        if not node.users:
            return
        assert target is not None
        if kind == InputKind.PARAMETER or target in self.program.state_dict:
            tensor = self.program.state_dict[target]
        else:
            tensor = self.program.constants[target]
        assert isinstance(tensor, torch.Tensor)
        first = self.tied.get(target, target).removeprefix(self.prefix)
        if first not in self.consts:
            weight = held(first, tensor) if kind == InputKind.CONSTANT_TENSOR else self.weight_of(first, tensor)
            if weight.type != self.type_of(tensor):
                raise IRError(f"the weight {first} is {weight.type}, the model computes with {self.type_of(tensor)}")
            self.consts[first] = self.module.add_const(first, weight)
        self.values[node] = self.consts[first]

    def call(self, node: Node) -> None:
        name = str(node.target)
        if name in _SKIPPED or is_number(node.meta.get("val")):
            return
        if node.target is operator.getitem:
            source, position = node.args
            self.values[node] = self.values[source][position]  # type: ignore[index]
            return
        rule = RULES.get(name)
        where = location(node)
        if rule is None:
            raise UnsupportedOp(f"no rule imports the torch op {name}", where=where,
                                hint="add one to a file of ingot/frontend/aten/: @aten(\"" + name.removeprefix("aten.") + "\")")
        vals = node.meta["val"]
        self.graph.loc, self.graph.name = where, name
        self.graph.outs = tuple(map(self.type_of, vals)) if isinstance(vals, list | tuple) else (self.type_of(vals),)
        before = len(self.graph.func.ops)
        try:
            results = rule(self.graph, *map(self.argument, node.args),
                           **{key: self.argument(value) for key, value in node.kwargs.items()})
        except IngotError as error:
            raise type(error)(f"importing {name} ({node.name}): {error.message}", where=error.where or where,
                              hint=error.hint) from None
        several = isinstance(results, tuple)
        settled = tuple(None if v is None else self.settle(v, t, name)
                        for v, t in zip(results if several else (results,), self.graph.outs, strict=True))
        made = set(self.graph.func.ops[before:])
        for value in settled:
            if value is not None and value.op in made:
                value.hint = node.name
        self.values[node] = settled if several else settled[0]

    def settle(self, value: Value, expected: TensorType | None, name: str) -> Value:
        """The value in the type torch declares. Raises IRError when its shape is another one."""
        if expected is None or value.type == expected:
            return value
        if value.type.dims != expected.dims:
            raise IRError(f"the rule for {name} gives {value.type}, torch {expected}", where=self.graph.loc)
        return self.graph.cast(value, expected.dtype)

    def output(self, node: Node, outputs: tuple[str, ...]) -> None:
        returned: list[Value] = []
        for spec, value in zip(self.program.graph_signature.output_specs, node.args[0], strict=True):  # type: ignore[arg-type]
            if spec.kind != OutputKind.USER_OUTPUT:
                raise UnsupportedOp(f"the model changes {spec.target} while it runs",
                                    hint="call model.eval() first; state must be an input and an output")
            if isinstance(value, Node) and isinstance(self.values.get(value), Value):
                returned.append(self.values[value])
        for name, result in zip(outputs, returned):
            if result.op is not None and not isinstance(result, Const):
                result.hint = name
        self.graph.func.set_returns(returned)

    # --- torch's objects as the graph's --------------------------------------------------------------------------

    def argument(self, x: Any) -> Any:
        if isinstance(x, Node):
            val = x.meta.get("val")
            return self.dim(val) if is_number(val) else self.values[x]
        if isinstance(x, list | tuple):
            return [self.argument(item) for item in x]
        if isinstance(x, torch.dtype):
            return self.dtype(x)
        return x

    def dim(self, val: Any) -> Dim | float:
        if isinstance(val, torch.SymFloat | torch.SymBool):
            raise UnsupportedOp(f"a number computed from sizes that is no integer: {val}")
        return val if isinstance(val, float) else self.sizes.dim(val)

    @staticmethod
    def dtype(dtype: torch.dtype) -> DType:
        if dtype not in TORCH_DTYPES:
            raise UnsupportedOp(f"the model computes in {dtype}, which has no counterpart")
        return TORCH_DTYPES[dtype]

    def type_of(self, tensor: Any) -> TensorType:
        if tensor is None:
            return None  # type: ignore[return-value]
        return TensorType(self.dtype(tensor.dtype), tuple(self.sizes.dim(size) for size in tensor.shape))


def is_number(val: Any) -> bool:
    """Whether torch knows a node's value as a number (of sizes) rather than a tensor."""
    return isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def known(node: Node) -> bool:
    """Whether a call can be imported as it stands."""
    name = str(node.target)
    return name in RULES or name in _SKIPPED or node.target is operator.getitem or is_number(node.meta.get("val"))


def location(node: Node) -> str | None:
    """`modeling_llama.py:97`: the innermost line of the model's own source that made a node."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [f for f in frames if not _foreign(f[0])]
    path, line = (own or frames or [("", "")])[-1]
    return f"{Path(path).name}:{line}" if path else None


def _foreign(path: str) -> bool:
    name = Path(path).name
    return "/torch/" in path or path.startswith(_HERE) or ("/transformers/" in path and not name.startswith("modeling_"))


def symbol_names(program: ExportedProgram, dims: Mapping[str, tuple[str | int | None, ...]]) -> dict[str, str]:
    """Names for torch's size symbols, read off the inputs whose axes were given names."""
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in dims:
            for size, name in zip(node.meta["val"].shape, dims[node.name]):
                if isinstance(size, torch.SymInt) and isinstance(name, str):
                    found[str(size.node.expr)] = name
    return found
