"""Running two modules on the same inputs and comparing what they compute."""

from __future__ import annotations

from ingot.ir.interpret import solve_dims
from ingot.ir.module import Module
from ingot.ir.text import print_module
from ingot.passes.contracts.difference import EXACT, difference
from ingot.passes.contracts.samples import inputs_for, sizes_for
from ingot.passes.contracts.trial import ExactTrial


def assert_exact(before: Module, after: Module, *, rtol: float = EXACT, rounds: int = 3, seed: int = 0) -> None:
    """Asserts that two modules compute the same in float64, over `rounds` draws of sizes and inputs.

    The first round takes the least size of every dim. Arrays may differ by `rtol` of their greatest magnitude (at least
    1), which allows for another order of summation. Raises AssertionError with the place and both texts.
    """
    known = {p.hint for p in before.main.params}
    unknown = [p.hint for p in after.main.params if p.hint not in known]
    assert not unknown, f"parameters {unknown} came from nowhere"
    found = ExactTrial(rtol=rtol, rounds=rounds).find(before, after, seed=seed)
    if found is not None:
        params = before.main.params
        sizes = solve_dims([p.type for p in params], [found.inputs[p.hint or ""].shape for p in params])
        texts = f"--- before\n{print_module(before)}--- after\n{print_module(after)}"
        raise AssertionError(f"result {found.output} at {sizes}: {found.difference.reason}\n{texts}")


__all__ = ["assert_exact", "difference", "inputs_for", "sizes_for"]
