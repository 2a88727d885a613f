"""A module as it was before a pass, and what became of each of its values."""

from __future__ import annotations

from ingot.ir.copy import copied
from ingot.ir.dims import Expr
from ingot.ir.module import Module
from ingot.ir.ops.layout import Pick
from ingot.ir.value import Const, Value

Pair = tuple[Value, Value]
"""A value before, and the one that stands for it afterwards."""


class Snapshot:
    """Made before a pass runs, asked after it. `before` is a copy of the module, `after` the module itself.

    Passes change a module in place, so a value that still stands in it is the same value; one that is gone is followed
    through the replacements that `Func.replace` noted meanwhile.
    """

    def __init__(self, module: Module) -> None:
        self.after = module
        self.before, self._copies = copied(module)
        self._epoch = module.epoch
        self._replaced: list[Pair] = []
        module.replaced = self._replaced

    def close(self) -> None:
        """Stop following the module."""
        self.after.replaced = None

    @property
    def changed(self) -> bool:
        """Whether the pass changed anything."""
        return self.after.epoch != self._epoch

    def pairs(self) -> list[Pair]:
        """Values of the main funcs that correspond and have the same type, parameters first, then in the order afterwards.

        Weights are left out: they are compared by what is computed with them. Returns correspond by their place.
        """
        func = self.after.main
        order = {v: i for i, v in enumerate([*func.params, *(r for op in func.ops for r in op.results)])}
        onward = dict(self._replaced)
        found: dict[Pair, None] = {}
        for original, old in self._copies.items():
            new, seen = original, {original}
            while new not in order and new in onward and onward[new] not in seen:
                new = onward[new]
                seen.add(new)
            found[old, new] = None
        named = {p.hint: p for p in func.params}
        found.update(dict.fromkeys((p, named[p.hint]) for p in self.before.main.params if p.hint in named))
        found.update(dict.fromkeys(zip(self.before.main.returns, func.returns)))
        alike = [(old, new) for old, new in found if new in order and old.type == new.type and not isinstance(old, Const)]
        return sorted(alike, key=lambda pair: order[pair[1]])

    def take_rows(self) -> None:
        """Where the pass made the module compute its outputs at positions `take` alone, let `before` do so too."""
        func, after = self.before.main, self.after.main
        added = [p for p in after.params if p.hint == "take" and all(q.hint != "take" for q in func.params)]
        wanted = {str(d) for p in added for d in p.type.dims[1:]}
        for i, (old, new) in enumerate(zip(func.returns, after.returns)):
            axis = next((a for a, d in enumerate(new.type.dims) if isinstance(d, Expr) and str(d) in wanted), None)
            if axis is None or old.type == new.type:
                continue
            self.before.dims.update({name: self.after.dims[name] for name in wanted})
            take = next((p for p in func.params if p.hint == "take"), None) or func.add_param("take", added[0].type)
            picked = func.insert(Pick(old, take, axis=axis)).result
            func.set_returns([*func.returns[:i], picked, *func.returns[i + 1:]])
