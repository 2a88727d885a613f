"""Eager, differentiable execution of a module with torch: calibration, healing, and the fallback of the GPU target."""

from ingot.backends.torch.executor import Executor, run

__all__ = ["Executor", "run"]
