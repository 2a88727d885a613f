"""Time on the device, and what the device can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Clock:
    """Times calls on a device. budget: seconds spent on one number. On the CPU a call is timed once, for a dry run."""

    device: torch.device
    budget: float = 0.3
    _flush: torch.Tensor | None = field(default=None, repr=False)

    def seconds(self, call: Callable[[], object]) -> float:
        """The median time of a call, each after the caches of the chip were filled with something else."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        call()
        torch.cuda.synchronize()
        first = self._once(call)
        return statistics.median([self._once(call) for _ in range(max(5, min(200, int(self.budget / max(first, 1e-6)))))])

    def span(self, call: Callable[[], object]) -> float:
        """The time of one long call, caches as they are."""
        if self.device.type != "cuda":
            return self.seconds(call)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _once(self, call: Callable[[], object]) -> float:
        if self._flush is None:
            self._flush = torch.empty(256 << 20, dtype=torch.int8, device=self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Ceilings:
    """What the card was measured to do. bandwidth: bytes per second read and written by a copy. flops: of a large bf16
    product in torch."""

    bandwidth: float
    flops: float


def ceilings(clock: Clock, *, tiny: bool) -> Ceilings:
    """A copy of 2 GiB and a product of 8192 x 8192 matrices, or of next to nothing when tiny."""
    count, side = (1 << 16, 64) if tiny else (1 << 30, 8192)
    source = torch.zeros(count, dtype=torch.int8, device=clock.device)
    target = torch.empty_like(source)
    copied = clock.seconds(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    product = clock.seconds(lambda: torch.matmul(a, b))
    return Ceilings(2 * count / copied, 2 * side**3 / product)
