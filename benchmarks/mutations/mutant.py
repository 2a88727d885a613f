"""What a mutant is: one planted bug, and the checks that are to notice it, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["contract", "property", "differential", "test"]
"""contract: `--check` on a small decoder. property: a test on random inputs, or on every case of a table. differential: against
another implementation (torch, transformers, the reference, an unsplit run). test: an example whose answer is known."""


@dataclass(frozen=True)
class Contract:
    """The passes of `pipeline` keep their contracts on a decoder of `ingot.testing`. plan, spelling: its fields that are not at
    their defaults; raw: its layers are written out."""

    pipeline: str
    plan: tuple[tuple[str, Any], ...]
    spelling: tuple[tuple[str, Any], ...]
    raw: bool
    kind: Kind = "contract"

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in (*self.plan, *self.spelling))
        return f"--check {self.pipeline} on {'written-out ' if self.raw else ''}decoder({said})"


@dataclass(frozen=True)
class NamedTest:
    """A test passes. id: pytest's. interpreted: it runs where Triton interprets its kernels."""

    id: str
    kind: Kind
    interpreted: bool = False

    def __str__(self) -> str:
        return self.id


Detector = Contract | NamedTest


@dataclass(frozen=True)
class Mutant:
    """A bug. file: below the root of the checkout. old: must occur in it once; new: what stands there instead."""

    name: str
    file: str
    old: str
    new: str
    detectors: tuple[Detector, ...]

    @property
    def area(self) -> str:
        """The part of ingot that it is planted in."""
        top, second, *_ = self.file.split("/")
        return f"{top}/{second}" if top == "backends" else top


def contract(pipeline: str, *, raw: bool = False, spelling: dict[str, Any] | None = None, **plan: Any) -> Contract:
    """A Contract detector; plan: fields of `ingot.testing.Decoder`."""
    return Contract(pipeline, tuple(plan.items()), tuple((spelling or {}).items()), raw)


def prop(id: str) -> NamedTest:
    """A property test."""
    return NamedTest(id, "property")


def diff(id: str) -> NamedTest:
    """A differential test."""
    return NamedTest(id, "differential")


def example(id: str) -> NamedTest:
    """A test of one example."""
    return NamedTest(id, "test")


def case(name: str, *, interpreted: bool = False) -> NamedTest:
    """The differential test of one op case on every backend (`interpreted`: on interpreted Triton kernels)."""
    folder = "tests/backends/triton/interpreted" if interpreted else "tests/backends"
    return NamedTest(f"{folder}/test_ops.py::test_op[{name}]", "differential", interpreted)


def golden(name: str) -> tuple[NamedTest, NamedTest]:
    """A golden case of a pass: its contract, then its text."""
    return (NamedTest(f"tests/passes/test_golden.py::test_contract[{name}]", "contract"),
            NamedTest(f"tests/passes/test_golden.py::test_text[{name}]", "test"))
