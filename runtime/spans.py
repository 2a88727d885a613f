"""Arrays in the weights file, read by where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.errors import ArtifactError

Span = tuple[int, int]
"""Where an array lies in the weights file: first byte and number of bytes."""


def read(stored: Span, weights: Path, dtype: Any) -> NDArray[Any]:
    """The array at a place of the file `weights`, mapped. ArtifactError when the file has not that many bytes there."""
    try:
        data = np.memmap(weights, np.uint8, mode="r")[stored[0] : stored[0] + stored[1]]
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise ArtifactError(f"the weights file cannot be read: {error}", where=str(weights),
                            hint="copy the artifact again, or compile it again") from error
    if len(data) != stored[1] or len(data) % np.dtype(dtype).itemsize:
        raise ArtifactError("the weights file is shorter than its index says", where=str(weights),
                            hint="copy the artifact again, or compile it again")
    return data.view(dtype)
