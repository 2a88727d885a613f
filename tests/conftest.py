"""How property tests run: the same examples every time (`ci`), unless another profile is asked for.

`pytest --hypothesis-profile=dev` looks for new counterexamples: random, ten times as many, and kept in .hypothesis.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=_SLOW)
settings.register_profile("dev", deadline=None, max_examples=1000, derandomize=False, suppress_health_check=_SLOW)
settings.load_profile("ci")
