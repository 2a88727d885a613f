"""`--check`: contracts on the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ingot
from ingot.cli import main
from ingot.errors import ContractError
from ingot.ir.text import parse_module
from ingot.passes.base import PASSES
from tests.frontend.models import VOCAB, saved, tiny

Run = Callable[..., Result]

PLUGIN = '''
from dataclasses import dataclass

from ingot.ir.module import Builder
from ingot.ir.ops.pointwise import Silu
from ingot.passes.base import Pass


@dataclass(frozen=True)
class Forgetful(Pass):
    """Forgets the activation of one layer."""

    name = "forgetful"
    layer: int = 1

    def run(self, module, ctx):
        op = [op for op in module.main.ops if isinstance(op, Silu)][self.layer]
        module.main.replace(op.result, op.x)
        module.main.drop_dead()
        return 1
'''

DUMP = """module @m {
  dim S in 1..8
  const @w : f32[2, 2] = dense([[0.5, -1.0], [2.0, 0.25]])
  func @forward(%x: f32[S, 2]) -> (f32[S, 2]) {
    %a = silu(%x) : f32[S, 2]
    %y = linear(%a, @w) : f32[S, 2]
    %b = silu(%y) : f32[S, 2]  loc("net.py:7")
    %z = add(%b, %x) : f32[S, 2]
    return %z
  }
}
"""


@pytest.fixture
def run() -> Run:
    def invoke(*args: object, input: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args], input=input)

    return invoke


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    yield path
    PASSES.pop("forgetful", None)


def test_opt_names_what_a_pass_broke_and_leaves_a_repro(run: Run, plugin: Path, tmp_path: Path) -> None:
    dump = tmp_path / "m.ir"
    dump.write_text(DUMP)
    args = ("opt", dump, "--passes", "dce,forgetful", "--plugin", plugin, "-o", tmp_path / "out.ir")
    assert run(*args).exit_code == 0
    (tmp_path / "out.ir").unlink()
    result = run(*args, "--check", "--repro", tmp_path / "repros")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) <= 10
    assert lines[0].startswith("error: forgetful broke its contract (exact): %y: f32[S, 2] at [")
    assert "before: %b = silu(%y)" in lines[1]
    assert lines[-1].strip() == f"replay it with: ingot bisect {tmp_path / 'repros' / 'forgetful-1'} --plugin {plugin}"
    assert not (tmp_path / "out.ir").exists()
    again = run("bisect", tmp_path / "repros" / "forgetful-1", "--plugin", plugin)
    assert again.exit_code == 1
    assert again.stdout.startswith("still wrong: forgetful at %y: at [")


def test_opt_checks_text_without_weights_and_prints_the_same(run: Run) -> None:
    text = DUMP.replace("dense([[0.5, -1.0], [2.0, 0.25]])", 'safetensors(file="a", key="w")')
    plain = run("opt", "-", "--passes", "clean", input=text)
    checked = run("opt", "-", "--passes", "clean", "--check", input=text)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout == plain.stdout
    assert 'safetensors(file="a", key="w")' in checked.stdout


def test_python_functions_check_too(plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.passes.plugins import load_plugins

    load_plugins([str(plugin)])
    monkeypatch.chdir(tmp_path)
    receipts = ingot.optimize(parse_module(DUMP), "dce,canonicalize", check=True)
    assert [r.changed for r in receipts] == ["check" in r.details for r in receipts]
    with pytest.raises(ContractError, match="%y"):
        ingot.optimize(parse_module(DUMP), "forgetful", check=True, repro=None)
    assert not (tmp_path / "ingot-repro").exists()
    with pytest.raises(ContractError, match="ingot bisect ingot-repro/forgetful-1"):
        ingot.optimize(parse_module(DUMP), "forgetful", check=True)
    ingot.optimize(parse_module(DUMP), "forgetful")


def test_compile_checks_a_whole_recipe(run: Run, tmp_path: Path) -> None:
    model = saved(tiny("llama")[1], tmp_path / "model")
    np.savez(tmp_path / "calib.npz", text=np.random.default_rng(0).integers(3, VOCAB, (1, 24)))
    done = run("compile", model, "--calib", tmp_path / "calib.npz", "--check", "-o", tmp_path / "out", "--recipe", "cpu-int4",
               "--json")
    assert done.exit_code == 0, done.output
    receipts = json.loads(done.stdout)["receipts"]
    assert all("check" in r["details"] for r in receipts if r["changed"])
    quantize = next(r for r in receipts if r["stage"].startswith("quantize"))
    assert 0 < quantize["details"]["error"]["kl"] < 0.1


def test_compile_writes_nothing_where_a_contract_is_broken(run: Run, plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text(DUMP)
    wrong = run("compile", tmp_path / "m.ir", "-o", tmp_path / "out", "--passes", "forgetful{layer=0}", "--plugin", plugin,
                "--check", "--repro", tmp_path / "repros")
    assert wrong.exit_code == 1
    assert "forgetful{layer=0} broke its contract" in wrong.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"m.ir", "plugin.py", "repros"}
