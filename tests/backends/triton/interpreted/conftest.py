"""Every test here runs under the repaired interpreter, on one thread; keys are split in three, for programs take turns."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from ingot.backends.triton import attention
from ingot.backends.triton.interpreter import repaired


@pytest.fixture(autouse=True)
def _repaired() -> Iterator[None]:
    torch.set_num_threads(1)
    with repaired(), patch.object(attention, "SPLITS", ((256, 3),)):
        yield
