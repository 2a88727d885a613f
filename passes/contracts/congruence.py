"""Which values of several funcs are known to be equal: equal operands under equal ops give equal results.

The congruence closure of Nelson and Oppen ("Fast decision procedures based on congruence closure", JACM 1980), kept up to
date as equalities are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

from ingot.ir.module import Func
from ingot.ir.op import Op
from ingot.ir.value import Const, Value
from ingot.passes.cleanup.cse import op_key, weight_key


class Congruence:
    """Classes of equal values. Every value of the funcs taken in with `add` is in one; `find` gives its representative."""

    def __init__(self) -> None:
        self._parent: dict[Value, Value] = {}
        self._members: dict[Value, list[Value]] = {}
        self._users: defaultdict[Value, list[Op]] = defaultdict(list)
        self._ops: dict[Hashable, Op] = {}
        self._weights: dict[Hashable, Value] = {}

    def add(self, func: Func) -> None:
        """Take in the values of a func. Weights with the same numbers are equal from the start, parameters are not."""
        for param in func.params:
            self._new(param)
        for value in (v for op in (*func.ops, func._return) for v in op.operands):
            if isinstance(value, Const) and value not in self._parent:
                self._new(value)
                self.union(value, self._weights.setdefault(weight_key(value) or id(value.weight), value))
        for op in func.ops:
            for result in op.results:
                self._new(result)
            for root in {self.find(v) for v in op.operands}:
                self._users[root].append(op)
            self._enter(op)

    def find(self, value: Value) -> Value:
        """The representative of a value's class."""
        root = value
        while self._parent[root] is not root:
            root = self._parent[root]
        while self._parent[value] is not root:
            self._parent[value], value = root, self._parent[value]
        return root

    def same(self, x: Value, y: Value) -> bool:
        return self.find(x) is self.find(y)

    def members(self, value: Value) -> list[Value]:
        """All values equal to this one."""
        return self._members[self.find(value)]

    def union(self, x: Value, y: Value) -> None:
        """Let two values be equal, and all that follows from it."""
        pending = [(x, y)]
        while pending:
            old, root = (self.find(v) for v in pending.pop())
            if old is root:
                continue
            if len(self._members[old]) > len(self._members[root]):
                old, root = root, old
            self._parent[old] = root
            self._members[root] += self._members.pop(old)
            moved = self._users.pop(old, [])
            self._users[root] += moved
            for op in moved:
                twin = self._ops.setdefault(self._key(op), op)
                pending += zip(op.results, twin.results)

    def _new(self, value: Value) -> None:
        self._parent[value] = value
        self._members[value] = [value]

    def _enter(self, op: Op) -> None:
        twin = self._ops.setdefault(self._key(op), op)
        if twin is not op:
            for mine, its in zip(op.results, twin.results):
                self.union(mine, its)

    def _key(self, op: Op) -> Hashable:
        return op_key(op, lambda value: id(self.find(value)))
