"""The table of planted bugs fits the sources, and its harness counts as caught what a check said, not what broke down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.mutations.detect import judged
from benchmarks.mutations.mutant import Contract, Mutant, NamedTest
from benchmarks.mutations.run import examined
from benchmarks.mutations.shadow import ROOT, planted, shadow, stale
from benchmarks.mutations.table import MUTANTS
from ingot.errors import ContractError, IRError


def test_every_mutant_can_be_planted() -> None:
    """A refactor that moves a snippet moves it in the table too."""
    assert [f"{m.name}: {reason}" for m in MUTANTS if (reason := stale(ROOT, m)) is not None] == []
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_the_tests_that_are_to_notice_them_are_there() -> None:
    ids = {d.id.partition("[")[0] for m in MUTANTS for d in m.detectors if isinstance(d, NamedTest)}
    for id in ids:
        file, _, name = id.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(), id
    assert all(m.detectors for m in MUTANTS)


def test_a_mutant_stands_in_the_copy_alone_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = 1\ny = 1\n")
    mutant = Mutant("two", "a.py", "x = 1", "x = 2", ())
    with planted(tmp_path, mutant):
        assert path.read_text() == "x = 2\ny = 1\n"
        assert stale(tmp_path, mutant) == "its snippet occurs 0 times"
    assert path.read_text() == "x = 1\ny = 1\n"
    assert stale(tmp_path, mutant) is None
    assert stale(tmp_path, Mutant("both", "a.py", "= 1", "= 2", ())) == "its snippet occurs 2 times"
    assert stale(tmp_path, Mutant("none", "b.py", "x", "y", ())) == "its file is gone"


def test_contracts_notice_some_of_them(few: Sequence[Mutant], copy_of_sources: Path) -> None:
    """All of them, against all their checks: python benchmarks/mutations/run.py"""
    checks = [m.detectors[0] for m in few]
    assert examined(copy_of_sources, checks, stop=False).failures == []
    for mutant in few:
        with planted(copy_of_sources, mutant):
            found = examined(copy_of_sources, mutant.detectors[:1], stop=True).failures
        assert [f.counted for f in found] == [True], mutant.name


@pytest.fixture
def few() -> list[Mutant]:
    names = {"rotation-not-transposed", "qkv-split-at-the-wrong-offset", "keys-and-values-swapped", "score-scale-dropped"}
    found = [m for m in MUTANTS if m.name in names]
    assert len(found) == len(names)
    assert all(isinstance(m.detectors[0], Contract) for m in found)
    return found


@pytest.fixture
def copy_of_sources() -> Iterator[Path]:
    with shadow(compiled=False) as root:
        yield root


@pytest.mark.parametrize(("error", "counted"), [
    (AssertionError("off by 0.5"), True), (AssertionError(), False), (ContractError("%x differs", stage="cse"), True),
    (IRError("rank 3, expected 2"), True), (IRError("the reference failed: ValueError: shapes"), False),
    (pytest.fail.Exception("DID NOT RAISE"), True), (ExceptionGroup("two", [AssertionError("off by 1")]), True),
    (ImportError("no module"), False), (TypeError("no such argument"), False), (ZeroDivisionError(), False)], ids=repr)
def test_what_counts_as_caught(error: Exception, counted: bool) -> None:
    assert judged(error)[1] == counted
