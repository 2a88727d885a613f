"""ONNX nodes as plain data: equal nodes are made once, and names are settled at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, helper

Attr = int | float | str | bytes | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; an absent optional input is ""."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    attrs: tuple[tuple[str, Any], ...]
    outputs: tuple[str, ...]
    loc: str | None = None


@dataclass
class Nodes:
    """The nodes made so far. `alias` says which name an announced name turned out to be."""

    by_output: dict[str, Node] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    _made: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)
    _count: int = 0

    def add(self, op_type: str, inputs: tuple[str, ...], attrs: Mapping[str, Any], domain: str, n_out: int,
            loc: str | None) -> tuple[str, ...]:
        """The outputs of a node, which is made unless an equal one exists."""
        packed = tuple(sorted((k, _frozen(v)) for k, v in attrs.items() if v is not None))
        inputs = tuple(map(self.resolve, inputs))
        key = (op_type, domain, inputs, packed, n_out)
        if key not in self._made:
            outputs = tuple(self.fresh() for _ in range(n_out))
            self._made[key] = outputs
            node = Node(op_type, domain, inputs, packed, outputs, loc)
            self.by_output.update(dict.fromkeys(outputs, node))
        return self._made[key]

    def copy(self, name: str) -> str:
        """A new name for the same tensor: an Identity that is shared with nobody."""
        output = self.fresh()
        self.by_output[output] = Node("Identity", "", (self.resolve(name),), (), (output,))
        return output

    def fresh(self) -> str:
        """A name nobody has; a colon, which no name of the IR has, keeps it apart from those."""
        self._count += 1
        return f":{self._count}"

    def resolve(self, name: str) -> str:
        """The name behind any number of aliases."""
        while name in self.alias:
            name = self.alias[name]
        return name

    def merge(self, outputs: Iterable[str]) -> None:
        """Lets equal nodes behind `outputs` be one where their inputs only now turned out to be equal."""
        first: dict[tuple[Any, ...], Node] = {}
        for node in self.order(outputs):
            key = (node.op_type, node.domain, tuple(map(self.resolve, node.inputs)), node.attrs, len(node.outputs))
            twin = first.setdefault(key, node)
            if twin is not node:
                self.alias.update(zip(node.outputs, twin.outputs))

    def order(self, outputs: Iterable[str]) -> list[Node]:
        """The nodes that `outputs` depend on, each after its producers. Raises RuntimeError on a cycle, a bug in a rule."""
        done: dict[int, bool] = {}
        ordered: list[Node] = []
        for output in outputs:
            stack = [self.by_output.get(self.resolve(output))]
            while stack:
                node = stack[-1]
                if node is None or done.get(id(node)):
                    stack.pop()
                    continue
                if id(node) in done:
                    done[id(node)] = True
                    ordered.append(node)
                    stack.pop()
                    continue
                done[id(node)] = False
                for name in reversed(node.inputs):
                    source = self.by_output.get(self.resolve(name))
                    if source is None or done.get(id(source)):
                        continue
                    if id(source) in done:
                        raise RuntimeError(f"{node.op_type} and {source.op_type} need each other's result")
                    stack.append(source)
        return ordered


def to_proto(node: Node, nodes: Nodes, rename: Mapping[str, str]) -> NodeProto:
    """The protobuf of a node; `rename` maps resolved names to final ones. It is named after its first output."""
    inputs = [nodes.resolve(i) for i in node.inputs]
    outputs = [rename.get(o, o) for o in node.outputs]
    proto: NodeProto = helper.make_node(node.op_type, [rename.get(i, i) for i in inputs], outputs, name=outputs[0],
                                        domain=node.domain, doc_string=node.loc)
    for key, value in node.attrs:
        proto.attribute.append(helper.make_attribute(key, list(value) if isinstance(value, tuple) else value))
    return proto


def _frozen(value: Any) -> Any:
    if isinstance(value, bool | np.integer):
        return int(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
