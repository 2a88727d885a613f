"""Random modules that show themselves as text when a test fails."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import note

from ingot.ir.module import Module
from ingot.ir.text import print_module


def report(module: Callable[[], Module]) -> None:
    """Print the text of a module with the failure of a test that drew it. module: makes it as it was drawn."""
    note(_AsDrawn(module))


class _AsDrawn:
    """Prints as the module's text, which is made only when it is asked for."""

    def __init__(self, module: Callable[[], Module]) -> None:
        self.module = module

    def __repr__(self) -> str:
        return print_module(self.module())
