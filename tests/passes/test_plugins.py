"""Passes from outside: modules, files and installed packages; what clashes or is broken is one error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import ingot
from ingot.cli import main
from ingot.errors import IngotError, PassError
from ingot.passes.base import PASSES
from ingot.passes.pipeline import parse_pipeline
from ingot.passes.plugins import load_plugins
from ingot.testing import Decoder

PASS = '''
from dataclasses import dataclass

from ingot.ir.module import Module
from ingot.ir.ops.pointwise import Add
from ingot.passes.base import Context, Pass, option


@dataclass(frozen=True)
class {cls}(Pass):
    """Counts the sums."""

    name = "{name}"
    least: int = option(1, doc="how many there must be")

    def run(self, module: Module, ctx: Context) -> int:
        return sum(isinstance(op, Add) for op in module.ops)
'''


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passes and modules of a test are gone after it."""
    parse_pipeline("dce")
    passes, modules = dict(PASSES), set(sys.modules)
    yield
    PASSES.clear()
    PASSES.update(passes)
    for name in set(sys.modules) - modules:
        if "tmp" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def plugin(folder: Path, text: str, name: str = "counting.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def installed(site: Path, value: str, text: str, *, name: str = "counting_tools") -> None:
    """A package as pip leaves it: a module, and metadata with an entry point."""
    plugin(site, text, f"{name}.py")
    info = site / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[ingot.passes]\ncounts = {value}\n")


def test_a_file(tmp_path: Path) -> None:
    path = plugin(tmp_path, PASS.format(cls="Count", name="count-sums"))
    assert load_plugins([str(path)]) == ["count-sums"]
    assert load_plugins([str(path)]) == []  # once
    [p] = parse_pipeline("count-sums{least=2}")
    assert str(p) == "count-sums{least=2}"
    [receipt] = ingot.optimize(Decoder(layers=2).module(), [p])
    assert receipt.sites == 2


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path / "tools_of_mine", PASS.format(cls="Count", name="count-sums"))
    plugin(tmp_path / "tools_of_mine", "", "__init__.py")
    monkeypatch.chdir(tmp_path)
    assert load_plugins(["tools_of_mine.counting"]) == ["count-sums"]


def test_an_installed_package_is_found_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "counting_tools", PASS.format(cls="Count", name="count-sums"))
    with pytest.raises(PassError, match="unknown pass count-sums"):
        parse_pipeline("count-sums")
    monkeypatch.syspath_prepend(tmp_path)
    assert [str(p) for p in parse_pipeline("dce,count-sums")] == ["dce", "count-sums"]
    listed = CliRunner().invoke(main, ["passes", "count-sums", "--json"])
    [record] = json.loads(listed.stdout)
    assert record["doc"] == "Counts the sums."
    assert record["options"][0]["default"] == 1


def test_two_files_of_one_name(tmp_path: Path) -> None:
    paths = [plugin(tmp_path / part, PASS.format(cls="Count", name=f"count-{part}")) for part in "ab"]
    assert load_plugins(list(map(str, paths))) == ["count-a", "count-b"]


@pytest.mark.parametrize(("text", "parts"), [
    (PASS.format(cls="Dce", name="dce"), ["there is a pass dce already: ingot.passes.cleanup.dce.Dce"]),
    (PASS.format(cls="Count", name="count") + PASS.format(cls="Again", name="count"), ["there is a pass count already"]),
    ("x = 1\n", ["defines no pass"]),
    ("import no_such_package\n", ["counting.py:1", "No module named 'no_such_package'"]),
    ("\ndef broken(:\n", ["counting.py:2", "SyntaxError"]),
    ("\n\n1 / 0\n", ["counting.py:3", "ZeroDivisionError: division by zero"]),
    ("raise SystemExit('no')\n", ["counting.py:1", "SystemExit"]),
    (PASS.format(cls="Count", name="count-sums").replace("@dataclass(frozen=True)\n", ""), ["count-sums is no dataclass"]),
    (PASS.format(cls="Count", name="Count Sums"), ["'Count Sums' is no name"]),
    (PASS.format(cls="Count", name="count-sums").replace("def run", "def go"), ["count-sums has no run"]),
])
def test_a_broken_plugin_is_one_error(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = plugin(tmp_path, text)
    result = CliRunner().invoke(main, ["passes", "--plugin", str(path)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) <= 3
    for part in (f"plugin {path}", *parts) if "already" not in parts[0] else parts:
        assert part in result.output
    with pytest.raises(PassError):  # and again: a failed import leaves nothing behind
        load_plugins([str(path)])


def test_a_broken_installed_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "counting_tools", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PassError, match=r"installed plugin counts of counting-tools 1\.2: ZeroDivisionError"):
        load_plugins()
    assert parse_pipeline("canonicalize")  # which needs no plugin


@pytest.mark.parametrize("name", ["no_such_module", "no/such/file.py"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(IngotError, match=f"plugin {name}: [nN]o such file|plugin {name}: No module named"):
        load_plugins([name])


def test_every_verb_takes_plugins(tmp_path: Path) -> None:
    from ingot.ir.text import print_module

    path = plugin(tmp_path, PASS.format(cls="Count", name="count-sums"))
    dump = tmp_path / "m.ir"
    dump.write_text(print_module(Decoder().module()))
    for args in (["opt", dump, "--passes", "count-sums"], ["explain", dump, "--pass", "count-sums"],
                 ["compile", dump, "-o", tmp_path / "out", "--passes", "count-sums"], ["passes", "count-sums"]):
        result = CliRunner().invoke(main, [*map(str, args), "--plugin", str(path)])
        assert result.exit_code == 0, result.output
    assert "count-sums on" in CliRunner().invoke(main, ["explain", str(dump), "--pass", "count-sums"]).stdout


def test_a_pass_defined_anew_in_its_place_replaces_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook cell run twice."""
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    for doc in ("Counts the sums.", "Counts them better."):
        exec(PASS.format(cls="Count", name="count-sums").replace("Counts the sums.", doc), vars(notebook))
    assert PASSES["count-sums"].__doc__ == "Counts them better."
