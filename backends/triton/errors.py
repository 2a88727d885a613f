"""Why something has no kernel: raised while a kernel is written, and answered by another way to compute it."""

from __future__ import annotations


class NoKernel(Exception):
    """This computation cannot be one generated kernel; the partition then cuts it, or leaves the op to torch."""
