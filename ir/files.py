"""Small files of the outside world that carry settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ingot.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"this is not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise CheckpointError("a JSON object is expected", where=str(path))
    return found
