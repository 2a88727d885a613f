"""Values: what ops define and use. A value knows its users; its name is only a hint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.ir.types import TensorType

if TYPE_CHECKING:
    from ingot.ir.op import Op
    from ingot.ir.weights import Weight


class Value:
    """A tensor in the graph: the result of an op, or (with `op is None`) a parameter of a func."""

    __slots__ = ("__weakref__", "_users", "hint", "op", "type")

    def __init__(self, type: TensorType, *, op: Op | None = None, hint: str | None = None) -> None:
        self.type = type
        self.op = op
        self.hint = hint
        self._users: dict[Op, int] = {}

    @property
    def users(self) -> tuple[Op, ...]:
        """The ops that use this value (the func's return among them), each once, oldest first."""
        return tuple(self._users)

    @property
    def n_uses(self) -> int:
        """Uses counted as operands: an op that takes the value twice counts twice."""
        return sum(self._users.values())

    def _use(self, op: Op) -> None:
        self._users[op] = self._users.get(op, 0) + 1

    def _unuse(self, op: Op) -> None:
        self._users[op] -= 1
        if not self._users[op]:
            del self._users[op]

    def __repr__(self) -> str:
        return f"%{self.hint or '?'}: {self.type}"


class Const(Value):
    """A weight of the module as a value; printed `@name`. `name` is unique in its module."""

    __slots__ = ("name", "weight")

    def __init__(self, name: str, weight: Weight) -> None:
        super().__init__(weight.type, hint=name)
        self.name = name
        self.weight = weight

    def __repr__(self) -> str:
        return f"@{self.name}: {self.type}"
