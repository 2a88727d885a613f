"""Which block sizes and warps a kernel is started with: a table of measurements, and a stated default without one.

Without a GPU, or before tuning, a kernel runs with the settings it was written with: blocks that fill a 16-byte load per
thread, tiles of 16 x 32 for few rows, 64 x 32 for some and 128 x 128 for many, 4 warps (8 for the large tiles). `Tuner.measure`
tries a kernel's `choices` on the device and keeps the fastest for that kernel, chip and size. An artifact keeps its table in
`tuning.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingot.backends.triton.kernel import Kernel
from ingot.errors import ArtifactError

Settings = Mapping[str, int]
TABLE = "tuning.json"
"""The table's file in an artifact. The manifest does not list it: it is written where the artifact runs."""
REMOVE = "remove the file; kernels then have their defaults until they are measured again"


def key(kernel: Kernel, chip: str, sizes: Mapping[str, int]) -> str:
    """A kernel (by its source), a chip, and the kernel's sizes up to powers of two."""
    digest = hashlib.sha256(kernel.source.encode()).hexdigest()[:12]
    rounded = ",".join(f"{s}{max(sizes[s] - 1, 0).bit_length()}" for s in sizes if s in _symbols(kernel))
    return f"{chip}/{kernel.name}/{digest}/{rounded}"


def _symbols(kernel: Kernel) -> set[str]:
    from ingot.ir.dims import symbols

    return {*kernel.sizes, *(s for axis in kernel.grid.axes for dim, _ in axis for s in symbols(dim))}


@dataclass
class Tuner:
    """The table, by `key`. table: what differs from a kernel's defaults."""

    table: dict[str, dict[str, int]] = field(default_factory=dict)
    chip: str = ""

    def settings(self, kernel: Kernel, sizes: Mapping[str, int]) -> Settings:
        """What to start a kernel with, besides its defaults."""
        return self.table.get(key(kernel, self.chip, sizes), {}) if self.table else {}

    def measure(self, kernel: Kernel, sizes: Mapping[str, int], run: Callable[[Settings], None],
                seconds: Callable[[Callable[[], None]], float]) -> Settings:
        """Times the defaults and every choice, once per key; the fastest is kept. A choice that does not fit the chip is passed
        over. run: starts the kernel. seconds: of one start, measured on the device."""
        name = key(kernel, self.chip, sizes)
        if name not in self.table:
            times: list[tuple[float, dict[str, int]]] = []
            for choice in ({}, *kernel.choices):
                try:
                    times.append((seconds(lambda c=choice: run(c)), dict(choice)))  # type: ignore[misc]
                except Exception:
                    # Too much shared memory, or too many registers: each version of Triton has errors of its own for it.
                    if not choice:
                        raise
            self.table[name] = min(times, key=lambda t: t[0])[1]
        return self.table[name]

    def save(self, path: Path) -> None:
        """Writes the table, whole or not at all. Rows of other chips stay."""
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(self.table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        new.replace(path)

    @classmethod
    def load(cls, path: Path, chip: str) -> Tuner:
        """The table at `path`, an empty one where there is none. Raises ArtifactError when it is not one."""
        if not path.is_file():
            return cls(chip=chip)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"the table of settings is damaged: {error}", where=str(path), hint=REMOVE) from error
        rows = table.values() if isinstance(table, dict) else [None]
        if not all(isinstance(row, dict) and all(type(n) is int for n in row.values()) for row in rows):
            raise ArtifactError("this is not a table of settings: kernels to numbers by name", where=str(path), hint=REMOVE)
        return cls(table, chip)
