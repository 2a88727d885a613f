"""The line protocol every worker speaks with the driver, and the workloads they all run."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

VOCABULARY = 49_152
WARM_STEPS = 2
"""Decode steps before the timed ones."""
DECODE_STEPS = 64
"""Timed steps of a decode workload."""


class Engine(Protocol):
    """What a worker provides: both methods return (seconds, tokens)."""

    def prefill(self, prompt: int) -> tuple[float, int]:
        """Process one prompt, logits of its last position included."""

    def decode(self, batch: int, prompt: int) -> tuple[float, int]:
        """Greedy steps of `batch` sequences after a prompt, which is not timed."""


def prompt_tokens(batch: int, length: int) -> np.ndarray:
    """The same int32 tokens for every rival; special tokens (the lowest ids) are left out."""
    return np.random.default_rng(7).integers(100, VOCABULARY, (batch, length), dtype=np.int32)


def serve(engine: Engine, files: Iterable[Path]) -> None:
    """Answer the driver's lines until `quit`."""
    print("ready", json.dumps({"bytes": sum(path.stat().st_size for path in files)}), flush=True)
    workloads = {
        "decode-short": lambda: engine.decode(1, 32),
        "decode-1024": lambda: engine.decode(1, 1024),
        "batch8": lambda: engine.decode(8, 32),
        "prefill-512": lambda: engine.prefill(512),
    }
    for line in sys.stdin:
        name = line.strip()
        if name == "quit":
            print(json.dumps({"peak_bytes": peak_bytes()}), flush=True)
            return
        seconds, tokens = workloads[name]()
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


def peak_bytes() -> int:
    """The highest resident size of this process so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")
