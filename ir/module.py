"""Modules and funcs, and the few methods through which a graph may change.

Everything that changes a graph (`insert`, `erase`, `replace`, `set_operand`, `set_returns`, `add_param`, `set_param_type`,
`remove_param`, `add_const`, `remove_const`, `set_weight`, `set_dim`) moves `module.epoch`, so "did anything change" is
computed, never reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ingot.errors import IRError
from ingot.ir.op import Op, Return
from ingot.ir.types import TensorType
from ingot.ir.value import Const, Value
from ingot.ir.weights import Weight


def printable(name: str) -> str:
    """`name` with letters, digits, `_`, `.` and `-` kept: what can stand behind `@` in the text."""
    return re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII) or "_"


class Module:
    """Symbolic dims with their ranges, weights, funcs, and facts about the model.

    dims: name -> (least, greatest) value, both inclusive. meta: plain facts (kind, context length, ...).
    history: the passes applied so far, as pipeline text. replaced: where it is a list, `Func.replace` notes (old, new) in it.
    """

    def __init__(self, name: str = "model") -> None:
        self.name = name
        self.dims: dict[str, tuple[int, int]] = {}
        self.consts: dict[str, Const] = {}
        self.funcs: dict[str, Func] = {}
        self.meta: dict[str, str | int | float | bool] = {}
        self.history: list[str] = []
        self.epoch = 0
        self.replaced: list[tuple[Value, Value]] | None = None

    @property
    def main(self) -> Func:
        """The func named forward, or the only one."""
        if "forward" in self.funcs:
            return self.funcs["forward"]
        if len(self.funcs) != 1:
            raise IRError(f"module @{self.name} has no func @forward")
        return next(iter(self.funcs.values()))

    def add_func(self, name: str) -> Func:
        if name in self.funcs:
            raise IRError(f"func @{name} is already defined")
        self.funcs[name] = func = Func(self, name)
        self.epoch += 1
        return func

    def add_const(self, name: str, weight: Weight) -> Const:
        """A new weight; a number is appended to `name` when it is taken, characters that cannot be printed become `_`."""
        name = printable(name)
        unique, n = name, 1
        while unique in self.consts:
            unique, n = f"{name}.{n}", n + 1
        self.consts[unique] = const = Const(unique, weight)
        self.epoch += 1
        return const

    def remove_const(self, const: Const) -> None:
        """Forget an unused weight. Raises IRError while it is used."""
        if const.n_uses:
            raise IRError(f"@{const.name} is still used by {_users(const)}")
        del self.consts[const.name]
        self.epoch += 1

    def set_weight(self, const: Const, weight: Weight, *, resize: bool = False) -> None:
        """Give a weight other numbers, for all its users; with `resize` also other sizes: call `retype`, or build the users anew.

        Raises IRError when the types differ otherwise.
        """
        if weight.type != const.type and not (resize and weight.type.dtype == const.type.dtype
                                              and weight.type.rank == const.type.rank):
            raise IRError(f"@{const.name} is {const.type}, the numbers are {weight.type}")
        const.weight, const.type = weight, weight.type
        self.epoch += 1

    def set_dim(self, name: str, least: int, greatest: int) -> None:
        if self.dims.get(name) != (least, greatest):
            self.dims[name] = (least, greatest)
            self.epoch += 1

    @property
    def ops(self) -> Iterator[Op]:
        """All ops of all funcs, in order."""
        for func in self.funcs.values():
            yield from func.ops


class Func:
    """A straight-line list of ops in SSA form. `reuse` maps a result index to the param whose memory it may take."""

    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self.params: list[Value] = []
        self.ops: list[Op] = []
        self.reuse: dict[int, Value] = {}
        self._return = Return(())
        self._return.func = self

    @property
    def returns(self) -> tuple[Value, ...]:
        return self._return.values

    def param(self, name: str) -> Value:
        """The parameter called `name`. Raises IRError when there is none."""
        for value in self.params:
            if value.hint == name:
                return value
        raise IRError(f"func @{self.name} has no parameter %{name}")

    # --- changes --------------------------------------------------------------------------------------------------

    def add_param(self, name: str, type: TensorType) -> Value:
        value = Value(type, hint=name)
        self.params.append(value)
        self.module.epoch += 1
        return value

    def set_param_type(self, value: Value, type: TensorType) -> None:
        """Give a parameter another type; call `retype` afterwards. Raises IRError when there is no such parameter."""
        if value not in self.params:
            raise IRError(f"{value!r} is not a parameter of func @{self.name}")
        if value.type != type:
            value.type = type
            self.module.epoch += 1

    def remove_param(self, value: Value) -> None:
        """Drop an unused parameter. Raises IRError while it is used."""
        if value.n_uses:
            raise IRError(f"parameter %{value.hint} is still used by {_users(value)}")
        self.params.remove(value)
        self.reuse = {index: param for index, param in self.reuse.items() if param is not value}
        self.module.epoch += 1

    def insert(self, op: Op, *, before: Op | None = None, after: Op | None = None) -> Op:
        """Take a detached op in: before or after another one, else at the end. Raises IRError when there is no such place."""
        if op.func is not None:
            raise IRError(f"{op} is already in a func")
        for place in (before, after):
            if place is not None and place.func is not self:
                raise IRError(f"{place} is not in func @{self.name}")
        if before is not None and before is not self._return:
            self.ops.insert(self.ops.index(before), op)
        elif after is not None:
            self.ops.insert(self.ops.index(after) + 1, op)
        else:
            self.ops.append(op)
        op.func = self
        for value in op.operands:
            value._use(op)
        self.module.epoch += 1
        return op

    def erase(self, op: Op) -> None:
        """Remove an op. Raises IRError, naming the users, while a result is used."""
        if op.func is not self:
            raise IRError(f"{op} is not in func @{self.name}", where=op.loc)
        for value in op.results:
            if value.n_uses:
                raise IRError(f"cannot erase {op}: still used by {_users(value)}", where=op.loc)
        for value in op.operands:
            value._unuse(op)
        self.ops.remove(op)
        op.func = None
        self.module.epoch += 1

    def replace(self, old: Value, new: Value) -> None:
        """Let every user of `old` in this func use `new`, except the op that makes `new`.

        Raises IRError when the types differ.
        """
        if old.type != new.type:
            raise IRError(f"cannot replace {old!r} by {new!r}: other type", where=old.op.loc if old.op else None)
        users = [op for op in old.users if op.func is self and op is not new.op]
        if old is new or not users:
            return
        for user in users:
            self._rewire(user, lambda v: new if v is old else v)
        if new.op is not None and old.hint and (new.hint is None or new.hint == new.op.name.split(".")[-1]):
            new.hint = old.hint
        if self.module.replaced is not None:
            self.module.replaced.append((old, new))
        self.module.epoch += 1

    def set_operand(self, op: Op, field: str, value: Value | tuple[Value, ...] | None) -> None:
        """Change one operand of an op; result types must stay as they are (call `retype` after a change of shapes).

        Raises IRError when the op is elsewhere or has no such operand.
        """
        found = next((f for f in op.fields if f.name == field and f.kind != "attr"), None)
        if found is None or op.func is not self:
            raise IRError(f"{op} in func @{self.name} has no operand {field}", where=op.loc)
        new = op._settle(found, value)
        if op.__dict__[field] is new:
            return
        for v in op.operands:
            v._unuse(op)
        op.__dict__[field] = new
        for v in op.operands:
            v._use(op)
        self.module.epoch += 1

    def set_returns(self, values: Iterable[Value]) -> None:
        new = tuple(values)
        for value in self.returns:
            value._unuse(self._return)
        self._return.__dict__["values"] = new
        for value in new:
            value._use(self._return)
        self.module.epoch += 1

    def retype(self) -> None:
        """Infer all types again, in order, after operands changed their shapes."""
        for op in self.ops:
            for value, type in zip(op.results, op._infer(), strict=True):
                if value.type != type:
                    value.type = type
                    self.module.epoch += 1

    def _rewire(self, op: Op, fn: Callable[[Value], Value]) -> None:
        for value in op.operands:
            value._unuse(op)
        for (name, _), new in zip(op.operand_fields, op.map_operands(fn)):
            op.__dict__[name] = new
        for value in op.operands:
            value._use(op)

    def drop_dead(self) -> int:
        """Erase ops none of whose results is used, and unused weights; returns how many ops went."""
        before = len(self.ops)
        dead: list[Op] = []
        for op in reversed(self.ops):
            if not any(v.n_uses for v in op.results):
                for value in op.operands:
                    value._unuse(op)
                op.func = None
                dead.append(op)
        if dead:
            gone = set(map(id, dead))
            self.ops = [op for op in self.ops if id(op) not in gone]
            self.module.epoch += 1
        for const in [c for c in self.module.consts.values() if not c.n_uses]:
            self.module.remove_const(const)
        return before - len(self.ops)


class Builder:
    """Puts new ops at one place of a func: `y = b(Linear(x, w))`."""

    def __init__(self, func: Func, *, before: Op | None = None, loc: str | None = None) -> None:
        self.func = func
        self.before = before
        self.loc = loc if loc is not None else (before.loc if before is not None else None)

    @property
    def module(self) -> Module:
        return self.func.module

    def add(self, op: Op, hint: str | None = None) -> Op:
        """Insert an op and return it."""
        if op.loc is None:
            op.loc = self.loc
        if hint is not None:
            for value in op.results:
                value.hint = hint
        return self.func.insert(op, before=self.before)

    def __call__(self, op: Op, hint: str | None = None) -> Value:
        """Insert an op with one result and return the result."""
        return self.add(op, hint).result

    def const(self, name: str, weight: Weight) -> Const:
        return self.module.add_const(name, weight)


def _users(value: Value) -> str:
    return ", ".join(f"{op.name} ({op.loc})" if op.loc else op.name for op in value.users[:4])


__all__ = ["Builder", "Func", "Module"]
