"""Fixtures for pass tests: golden files, and the check that an exact pass leaves the float64 reference alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ingot.ir.dims import evaluate
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.types import TensorType
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight, UnknownWeight
from ingot.passes.base import Context, Pass
from ingot.passes.pipeline import parse_pipeline

CASES = Path(__file__).parent / "cases"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite what golden cases expect by what comes out")


@dataclass(frozen=True)
class Case:
    """One block of a golden file: the comment and pipeline above the module, and what stands below `# =>`."""

    path: Path
    index: int
    head: str
    pipeline: str
    before: str
    after: str
    error: str

    @property
    def id(self) -> str:
        return f"{self.path.stem}-{self.index}"

    @property
    def text(self) -> str:
        return self.head + self.before + (f"# error: {self.error}\n" if self.error else f"# =>\n{self.after}")


def read_cases(path: Path) -> list[Case]:
    cases = []
    for index, block in enumerate(path.read_text().split("# ---\n")):
        before, _, after = block.partition("# =>\n")
        before, _, error = before.partition("# error: ")
        lines = before.splitlines(keepends=True)
        top = next(i for i, line in enumerate(lines) if line.startswith("module"))
        pipeline = next(line[len("# run: "):].strip() for line in lines[:top] if line.startswith("# run: "))
        cases.append(Case(path, index, "".join(lines[:top]), pipeline, "".join(lines[top:]), after, error.strip()))
    return cases


def all_cases() -> list[Case]:
    return [case for path in sorted(CASES.glob("*.ir")) for case in read_cases(path)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = all_cases()
        metafunc.parametrize("case", cases, ids=[c.id for c in cases])


@pytest.fixture
def rewrite_case(request: pytest.FixtureRequest) -> Callable[[Case, str], bool] | None:
    """With --update-golden, a function that records what came out of a case; else None."""
    if not request.config.getoption("--update-golden", default=False):
        return None

    def record(case: Case, text: str) -> bool:
        cases = [c if c.index != case.index else Case(c.path, c.index, c.head, c.pipeline, c.before, text, c.error)
                 for c in read_cases(case.path)]
        case.path.write_text("# ---\n".join(c.text for c in cases))
        return True

    return record


Check = Callable[..., None]


@pytest.fixture
def check_exact() -> Check:
    """check_exact(module, pipeline): runs passes on `module` and compares the float64 reference before and after."""
    return assert_exact


def assert_exact(module: Module, passes: str | list[Pass], *, seed: int = 0, tolerance: float = 1e-9,
                 sizes: dict[str, int] | None = None) -> None:
    fill(module, seed)
    inputs = random_inputs(module, seed, sizes)
    before = run(module, inputs)
    for p in parse_pipeline(passes) if isinstance(passes, str) else passes:
        p.run(module, Context())
        verify(module)
    after = run(module, inputs)
    assert len(before) == len(after)
    for a, b in zip(before, after):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


def fill(module: Module, seed: int = 0) -> None:
    """Give weights known by name only random numbers, the same for the same name."""
    for const in module.consts.values():
        if isinstance(const.weight, UnknownWeight):
            rng = np.random.default_rng([seed, zlib.crc32(const.name.encode())])
            const.weight = ArrayWeight(_random(rng, const.type, const.type.shape), source=const.weight.origin)


def random_inputs(module: Module, seed: int = 0, sizes: dict[str, int] | None = None) -> list[np.ndarray]:
    """Inputs of the main func: small sizes, small integers; `pos` counts up, `mask` hides the last key of odd rows."""
    env = {name: min(max(least, 2 + index), greatest) for index, (name, (least, greatest)) in enumerate(module.dims.items())}
    env |= sizes or {}
    out = []
    for index, param in enumerate(module.main.params):
        shape = tuple(evaluate(d, env) for d in param.type.dims)
        if param.hint == "pos":
            out.append(np.broadcast_to(np.arange(shape[-1]), shape).astype(param.type.dtype.numpy))
        elif param.hint == "mask":
            padded = np.ones(shape, param.type.dtype.numpy)
            padded[1::2, -1:] = shape[-1] == 1
            out.append(padded)
        else:
            out.append(_random(np.random.default_rng([seed, index]), param.type, shape, 2 if param.hint == "types" else 4))
    return out


def _random(rng: np.random.Generator, type: TensorType, shape: tuple[int, ...], below: int = 4) -> np.ndarray:
    if type.dtype.is_float:
        return rng.normal(size=shape).astype(type.dtype.numpy)
    return rng.integers(0, 2 if type.dtype.kind == "bool" else below, size=shape).astype(type.dtype.numpy)


