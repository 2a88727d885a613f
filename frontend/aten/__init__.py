"""Rules that turn torch ops into ops of the graph, one file per family. Importing this package registers them all."""

from ingot.frontend.aten import create, layout, nn, pointwise, reduce
from ingot.frontend.aten.registry import RULES, Graph, aten

__all__ = ["RULES", "Graph", "aten", "create", "layout", "nn", "pointwise", "reduce"]
