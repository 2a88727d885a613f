"""Numbers in place of weights that a dump does not hold."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.ir.stand_in import StandIn
from ingot.ir.types import DTYPES, TensorType
from ingot.ir.weights import call


@pytest.mark.parametrize("name", sorted(name for name in DTYPES if name != "bool"))
def test_numbers_can_be_computed_with(name: str) -> None:
    """Powers of two among them, which have no sign: a negative one would be NaN."""
    numbers = StandIn(TensorType(DTYPES[name], (8, 32)), call("random")).materialize()
    assert numbers.dtype == DTYPES[name].numpy
    assert np.isfinite(numbers.astype(np.float64)).all()
    assert len(np.unique(numbers.astype(np.float64))) > 1
