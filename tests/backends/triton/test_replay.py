"""The generated source of fixed modules, kept in replay/*.txt, so that a change of the generator shows what it changes.

`pytest --update-golden` writes it anew (where that option is known: with tests/passes collected), or this file run by itself:
`python -m tests.backends.triton.test_replay`.
"""

from __future__ import annotations

import pytest

from ingot.backends.triton.groups import partition
from tests.backends.triton.examples import HERE, NAMES, example


def generated(name: str) -> str:
    """Every different kernel of a module once, in order of first use."""
    kernels = [k.source for g in partition(example(name).main) for v in g.variants for k in v.kernels]
    return "\n".join(dict.fromkeys(kernels))


@pytest.mark.parametrize("name", NAMES)
def test_generated_source_is_as_kept(name: str, request: pytest.FixtureRequest) -> None:
    file = HERE / f"{name}.txt"
    if request.config.getoption("--update-golden", default=False):
        file.write_text(generated(name))
    assert generated(name) == file.read_text(), f"the kernels of {name} changed: read the difference, then keep it"


def test_generation_is_deterministic() -> None:
    assert generated("llama_layer") == generated("llama_layer")


if __name__ == "__main__":
    for known in NAMES:
        (HERE / f"{known}.txt").write_text(generated(known))
