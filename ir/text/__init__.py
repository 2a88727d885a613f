"""The text form of a module: `print_module` and `parse_module` are inverse to each other."""

from ingot.ir.text.parser import parse_module
from ingot.ir.text.printer import print_module

__all__ = ["parse_module", "print_module"]
