"""The weights of a graph, made from an artifact's packed weights when the graph is loaded.

A decode step multiplies one row and is fastest on 4-bit weights; a prompt multiplies hundreds and is fastest on int8; and some
formats have no kernel at all. The artifact stores the packed weights alone, and this is where the others come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ingot.errors import ArtifactError
from ingot.runtime.cache import decoded_shape
from ingot.runtime.lookup import LookedUp, looked_up
from ingot.runtime.manifest import Manifest
from ingot.runtime.records import record
from ingot.runtime.spans import Span, read

FILE = "prefill.bin"
"""The file that such a graph reads its weights from."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Bytes that the graph takes as they are, and where they go."""

    offset: int
    copy: Span


@contextmanager
def prefill_weights(plan: Sequence[Mapping[str, Any]], weights: Path) -> Iterator[Path | None]:
    """A temporary folder with a graph's weights file; None without a plan, when the graph reads the artifact's own.

    ONNX Runtime maps the file piece by piece while it lays weights out for its kernels, so that they are in memory once.
    ArtifactError when there is no room for it.
    """
    if not plan:
        yield None
        return
    try:
        with TemporaryDirectory(prefix="ingot-", ignore_cleanup_errors=True) as folder:
            with (Path(folder) / FILE).open("wb") as file:
                for entry in plan:
                    _write(entry, file, weights)
            yield Path(folder)
    except OSError as error:
        raise ArtifactError(f"the graph's weights cannot be made: {error.strerror}", where=gettempdir(),
                            hint="free some space there, or set TMPDIR to a folder that has room") from error


def _write(entry: Mapping[str, Any], file: BinaryIO, weights: Path) -> None:
    try:
        piece = record(Copy, entry) if "copy" in entry else record(LookedUp, entry)
    except TypeError as error:
        raise ArtifactError(f"the manifest's plan of weights is damaged: {error}",
                            hint="compile the model again: ingot compile MODEL -o OUT") from error
    made = {piece.offset: read(piece.copy, weights, np.uint8)} if isinstance(piece, Copy) else looked_up(piece, weights)
    for offset, array in made.items():
        file.seek(offset)
        file.write(array.data)


def cache_steps(manifest: Manifest, path: Path) -> dict[str, NDArray[np.float32]]:
    """The steps of codes, by cache input, in a shape that broadcasts over [batch, heads, positions, features]."""
    steps: dict[str, NDArray[np.float32]] = {}
    for port in manifest.inputs:
        if port.name in manifest.prefill_steps:
            step = read(manifest.prefill_steps[port.name], path / manifest.weights, np.float32)
            shape = decoded_shape(port, [dim if isinstance(dim, int) else 1 for dim in port.dims])
            if step.size not in (1, math.prod(shape)):
                raise ArtifactError(f"there are {step.size} steps for the cache input {port.name!r}, a {port.dims} array")
            steps[port.name] = step.reshape(shape) if step.size > 1 else step
    return steps
