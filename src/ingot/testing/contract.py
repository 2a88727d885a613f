"""Whether a pass keeps its contract on a module: for tests of passes, by hand or under Hypothesis."""

from __future__ import annotations

from typing import Any

from ingot.errors import ContractError, NothingMatched
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.text import print_module
from ingot.passes.base import Context, Pass
from ingot.passes.contracts.contract import Check
from ingot.passes.pipeline import run_pass


def assert_contract(p: Pass, module: Module, *, seed: int = 0, calibration: Any = None) -> Module:
    """Asserts that a pass keeps its contract on a copy of a module, and returns the copy.

    What `ingot opt --check` checks: see `ingot.passes.contracts.contract`. A pass that finds nothing to do keeps it. calibration:
    batches of token ids i64[n, s], where the pass needs them. Raises AssertionError with the reason and both texts; other
    errors of the pass as they are.
    """
    after = copy_module(module)
    try:
        run_pass(after, p, Context(calibration=calibration), check=Check(seed=seed))
    except NothingMatched:
        pass
    except ContractError as error:
        raise AssertionError(f"{error}\n--- before\n{print_module(module)}--- after\n{print_module(after)}") from error
    return after
