"""From a func to an ONNX graph, on demand from the returns backwards.

Ops are visited last to first, and one is lowered when somebody has asked for a result of it. So a rule may reach
through the producers of its operands (attention through rope and transpose, say) and ask for what lies behind them:
what was absorbed and has no other user is never asked for and never emitted. Equal nodes are made once, so rules need
not share masks, shapes or tables by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

import ingot.backends.onnx.rules  # noqa: F401  (registers the rules)
from ingot.backends.decompose import Build, decomposed
from ingot.backends.onnx.border import inward, outward, port
from ingot.backends.onnx.dtypes import held, onnx_dtype
from ingot.backends.onnx.graph import Node, Nodes, to_proto
from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, Names, rules_for
from ingot.backends.onnx.weights import CONSTANT
from ingot.errors import IRError, UnsupportedOp
from ingot.ir.dims import Dim, Div, Expr, Sym
from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.text.printer import names
from ingot.ir.types import DType, TensorType, i64
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, DerivedWeight, Weight

_LEAST_OPSET = 23


@dataclass(frozen=True)
class Lowered:
    """A graph without its weights: `model` has no initializers yet, `weights` are the ones it uses by name.

    decoded: bytes of weights that are floats in memory once the graph is loaded, by the format in which they are stored.
    """

    model: ModelProto
    weights: dict[str, Weight]
    decoded: dict[str, int]


def lower(module: Module, *, func: Func | None = None, opset_only: bool = False, int8_rows: bool = False,
          output_names: Sequence[str] | None = None) -> Lowered:
    """The ONNX graph of a func (the main one).

    opset_only: standard operators alone, none of onnxruntime's own. int8_rows: linears on packed weights multiply in int8,
    for many rows at a time. output_names: of the returns, by default the names of the returned values. Raises UnsupportedOp,
    naming the op and the file to extend, for an op that no rule lowers and that does not decompose.
    """
    return Lowering(module, func=func, opset_only=opset_only, int8_rows=int8_rows).finish(output_names)


class Lowering:
    """What a rule works with: names of values, nodes, constants, dims.

    `lo(value)` is the ONNX name of a value of the graph, which asks for it to be computed.
    """

    def __init__(self, module: Module, *, func: Func | None = None, opset_only: bool = False, int8_rows: bool = False) -> None:
        self.module = module
        self.func = func or module.main
        self.opset_only = opset_only
        self.int8_rows = int8_rows
        self.nodes = Nodes()
        self.opset = _LEAST_OPSET
        self.decoded: dict[str, int] = {}
        self._names: dict[Value, str] = {v: n[1:] for v, n in names(self.func).items()}
        self._ports = {p: self._names[p] for p in self.func.params}
        self._wanted: dict[Value, None] = {}
        self._weights: dict[str, Weight] = {}
        self._stored: dict[Hashable, str] = {}
        self._taken = set(self._names.values())
        self._outward: dict[Value, str] = {}
        self._op: Op | None = None

    # --- for rules ------------------------------------------------------------------------------------------------

    def __call__(self, value: Value) -> str:
        """The ONNX name of a value, of element type `held(value.type.dtype)`."""
        if isinstance(value, Const):
            return self.weight(value)
        if value in self._ports:
            return inward(self, self._ports[value], value.type)
        self._wanted[value] = None
        return self._names[value]

    def port(self, param: Value) -> str:
        """The name of a graph input as it comes in, of type `border.port(param.type)`."""
        return self._ports[param]

    def is_port(self, value: Value) -> bool:
        """Whether a value is a parameter of the func."""
        return value in self._ports

    def provide(self, value: Value, name: str) -> None:
        """Says that `name` already is `value`, the result of an op before this one, which then needs no lowering.

        For a node with a second result (a normalisation that also gives the sum it normalised). Raises Decline when
        the value has been provided before.
        """
        if self.provided(value):
            raise Decline(f"{value!r} is computed elsewhere")
        self.nodes.alias[self._names[value]] = name

    def provide_outward(self, value: Value, name: str) -> None:
        """`provide`, where `name` is `value` as it crosses the graph's border."""
        self.provide(value, inward(self, name, value.type))
        self._outward[value] = name

    def provided(self, value: Value) -> bool:
        """Whether a rule has said, or the lowering has computed, what `value` is."""
        return self._names[value] in self.nodes.alias

    def emit(self, op_type: str, *inputs: str | None, domain: str = "", **attrs: Any) -> str:
        """A node with one output; returns its name. None stands for an absent input; attributes that are None are left out."""
        return self.emit_many(op_type, *inputs, n_out=1, domain=domain, **attrs)[0]

    def emit_many(self, op_type: str, *inputs: str | None, n_out: int, domain: str = "", **attrs: Any) -> tuple[str, ...]:
        """A node with several outputs."""
        given = [i or "" for i in inputs]
        while given and not given[-1]:
            given.pop()
        return self.nodes.add(op_type, tuple(given), attrs, domain, n_out, self._op.loc if self._op is not None else None)

    def build(self, op: Op, how: Build) -> tuple[str, ...]:
        """What `how(op, builder)` builds of IR ops from a copy of `op`, lowered; () when that is None."""
        expanded = decomposed(op, how)
        return () if expanded is None else self._splice(*expanded)

    def require(self, opset: int) -> None:
        """Raises the version of the standard operator set to at least `opset`."""
        self.opset = max(self.opset, opset)

    def const(self, value: Any, dtype: DType | None = None) -> str:
        """A small constant stored in the graph: a number or array, i64 unless `dtype` or the array says otherwise."""
        if dtype is None and not isinstance(value, np.ndarray):
            dtype = i64
        array = np.asarray(value, None if dtype is None else dtype.numpy)
        return self.stored(("const", str(array.dtype), array.shape, array.tobytes()), f"const.{array.dtype}",
                           lambda: ArrayWeight(array, CONSTANT))

    def weight(self, const: Const) -> str:
        """The initializer of a weight in its held type (narrow floats and sub-byte codes widened)."""
        weight, wide = const.weight, held(const.type.dtype)

        def make() -> Weight:
            if wide == const.type.dtype:
                return weight
            return self.derive(weight, const.type.with_dtype(wide), lambda a: a.astype(wide.numpy))

        return self.stored((weight, "held"), const.name, make)

    def stored(self, key: Hashable, name: str, make: Callable[[], Weight]) -> str:
        """The initializer for `key`, made once; `name` is a wish, and the same in every graph of a module."""
        if key not in self._stored:
            unique, n = name, 1
            while unique in self._taken:
                unique, n = f"{name}.{n}", n + 1
            self._taken.add(unique)
            self._stored[key] = unique
            self._weights[unique] = make()
        return self._stored[key]

    def initializer(self, name: str) -> Weight:
        """The weight that `stored` has made under this name."""
        return self._weights[name]

    @staticmethod
    def derive(weight: Weight, type: TensorType, fn: Callable[..., np.ndarray], *more: Weight) -> Weight:
        """A weight computed from others when it is written; its origin is the first one's."""
        return DerivedWeight(type, fn, (weight, *more), weight.origin)

    def cast(self, name: str, source: DType, target: DType) -> str:
        """`name` in element type `target`; itself when that is what it has."""
        return name if source == target else self.emit("Cast", name, to=onnx_dtype(target))

    def shape(self, dims: Sequence[Dim]) -> str:
        """A shape as a tensor i64[rank]; a constant when all dims are integers."""
        if all(isinstance(d, int) for d in dims):
            return self.const(np.array(dims, np.int64).reshape(-1))
        pieces: list[list[int] | str] = []
        for dim in dims:
            if not isinstance(dim, int):
                pieces.append(self.dim(dim))
            elif pieces and isinstance(pieces[-1], list):
                pieces[-1].append(dim)
            else:
                pieces.append([dim])
        parts = [p if isinstance(p, str) else self.const(p) for p in pieces]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)

    def scalar_dim(self, dim: Dim) -> str:
        """The value of a dim as an i64 scalar."""
        return self.const(dim) if isinstance(dim, int) else self.emit("Squeeze", self.dim(dim))

    def dim(self, dim: Dim) -> str:
        """The value of a dim as i64[1]."""
        if isinstance(dim, int):
            return self.const([dim])
        total = ""
        for monomial, factor in dim.terms:
            term = "" if factor != 1 or not monomial else self._atom(monomial[0])
            rest = monomial[1:] if term else monomial
            term = term or self.const([factor])
            for atom in rest:
                term = self.emit("Mul", term, self._atom(atom))
            total = self.emit("Add", total, term) if total else term
        return total

    def _atom(self, atom: Sym | Div) -> str:
        if isinstance(atom, Sym):
            return self._symbol(atom)
        return self.emit("Div" if atom.op == "//" else "Mod", self.dim(atom.num), self.dim(atom.den))

    def _symbol(self, symbol: Sym) -> str:
        alone = Expr((((symbol,), 1),))
        for param, name in self._ports.items():
            for axis, dim in enumerate(param.type.dims):
                if dim == alone:
                    return self.emit("Shape", name, start=axis, end=axis + 1)
        raise IRError(f"dimension {symbol} is not the size of an axis of any parameter of @{self.func.name}",
                      hint="ONNX reads symbols from the inputs' shapes; give one input an axis of exactly this size")

    # --- driving --------------------------------------------------------------------------------------------------

    def finish(self, output_names: Sequence[str] | None = None) -> Lowered:
        """Lowers what the returns need, and settles names. See `lower`."""
        returns = self.func.returns
        shown = list(output_names or self._output_names())
        if len(shown) != len(returns) or len({*shown, *self._ports.values()}) != len(shown) + len(self._ports):
            raise IRError(f"@{self.func.name} needs {len(returns)} output names that no input has, got {', '.join(shown)}")
        self._taken.update(shown)
        outputs = [self(v) for v in returns]
        self._visit(self.func.ops)
        self._op = None
        outputs = [self._outward.get(v) or outward(self, o, v.type) for o, v in zip(outputs, returns)]
        self.nodes.merge(outputs)
        rename: dict[str, str] = {}
        for i, (name, wanted) in enumerate(zip(outputs, shown)):
            real = self.nodes.resolve(name)
            if real not in self.nodes.by_output or real in rename:
                real = outputs[i] = self.nodes.copy(real)
            rename[real] = wanted
        order = self.nodes.order(outputs)
        self._name_values(order, rename)
        return Lowered(self._model(order, rename, shown), self._used(order), self.decoded)

    def _visit(self, ops: Sequence[Op]) -> None:
        for op in reversed(ops):
            if not any(r in self._wanted and not self.provided(r) for r in op.results):
                continue
            self._op = op
            found = self._lower(op)
            for result, name in zip(op.results, found if isinstance(found, tuple) else (found,), strict=True):
                if not self.provided(result):
                    self.nodes.alias[self._names[result]] = name

    def _lower(self, op: Op) -> Names:
        for rule in rules_for(type(op), opset_only=self.opset_only):
            asked, told = len(self._wanted), len(self.nodes.alias)
            try:
                found = rule(op, self)
            except Decline:
                found = None
            if found is not None:
                return found
            _truncate(self._wanted, asked)
            _truncate(self.nodes.alias, told)
        expanded = decomposed(op)
        if expanded is not None:
            return self._splice(*expanded)
        family = type(op).__module__.rpartition(".")[2]
        raise UnsupportedOp(f"the ONNX backend cannot lower {op.name} here", where=op.loc or f"%{op.results[0].hint}",
                            hint=f"add a rule for {type(op).__name__} to backends/onnx/rules_{family}.py, or give the op a "
                                 "decomposition")

    def _splice(self, func: Func, outer: tuple[Value, ...]) -> tuple[str, ...]:
        """Lowers the decomposition of an op in its place."""
        self._names.update((value, self.nodes.fresh()) for value in names(func))
        self._names.update((param, self(value)) for param, value in zip(func.params, outer))
        found = tuple(self(v) for v in func.returns)
        self._visit(func.ops)
        return found

    def _output_names(self) -> list[str]:
        taken = set(self._ports.values())
        shown: list[str] = []
        for value in self.func.returns:
            hint = value.hint or "output" if isinstance(value, Const) else self._names[value]
            name, n = hint, 1
            while name in taken:
                name, n = f"{hint}.{n}", n + 1
            taken.add(name)
            shown.append(name)
        return shown

    def _name_values(self, order: Sequence[Node], rename: dict[str, str]) -> None:
        """Extends `rename`: a node that computes a value of the func gets its name, the others get numbers."""
        used = {*self._ports.values(), *self._weights, *rename.values()}
        for name in self._names.values():
            real = self.nodes.resolve(name)
            if name not in used and not name.startswith(":") and real in self.nodes.by_output and real not in rename:
                rename[real] = name
                used.add(name)
        for node in order:
            for output in node.outputs:
                rename.setdefault(output, f"_{output[1:]}")

    def _used(self, order: Sequence[Node]) -> dict[str, Weight]:
        asked = {self.nodes.resolve(i) for node in order for i in node.inputs}
        return {name: weight for name, weight in self._weights.items() if name in asked}

    def _model(self, order: Sequence[Node], rename: dict[str, str], shown: Sequence[str]) -> ModelProto:
        inputs = [_port_info(name, p.type) for p, name in self._ports.items()]
        outputs = [_port_info(name, v.type) for name, v in zip(shown, self.func.returns)]
        graph = helper.make_graph([to_proto(node, self.nodes, rename) for node in order], self.module.name, inputs, outputs)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB_DOMAIN for node in order):
            opsets.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
        return helper.make_model(graph, opset_imports=opsets, producer_name="ingot",
                                 ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True))


def _port_info(name: str, type: TensorType) -> ValueInfoProto:
    crossing = port(type)
    dims = [d if isinstance(d, int) else str(d) for d in crossing.dims]
    info: ValueInfoProto = helper.make_tensor_value_info(name, onnx_dtype(crossing.dtype), dims)
    return info


def _truncate(table: dict[Any, Any], size: int) -> None:
    while len(table) > size:
        table.popitem()
