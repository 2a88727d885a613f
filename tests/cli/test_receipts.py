"""Receipts: a line for every pass and the totals, what a lossy pass cost, and refusals before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import ingot
from ingot.cli import main
from ingot.errors import PassError
from ingot.ir.text import print_module
from ingot.passes.pipeline import Receipt
from ingot.report import receipt_table
from ingot.testing import Decoder


def test_every_pass_and_the_totals() -> None:
    module = Decoder(place="pre", mlp="gated", activation="silu").module(raw=True)
    done = ingot.optimize(module, "canonicalize,recognize,fuse,quantize")
    lines = receipt_table(done).splitlines()
    assert lines[0].split() == ["pass", "sites", "ops", "parameters", "weights", "seconds", "peak", "memory"]
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["canonicalize", "recognize", "fuse", "quantize", "total"]
    total = lines[-1].split()
    assert int(total[1]) == sum(r.sites for r in done)
    assert total[2:5] == [str(done[0].ops_before), "->", str(done[-1].ops_after)]
    assert done[1].details["rules"]["BareRmsNorm"] == 2
    assert done[2].details == {"norm": 1, "qkv": 1, "mlp": 1, "rules": {"ResidualNorm": 1, "QueryKeyValue": 1, "GateUp": 1}}
    assert done[-1].parameters_after == done[0].parameters_before  # scales are not parameters
    assert done[-1].bytes_after < done[0].bytes_before


def test_what_a_lossy_pass_cost() -> None:
    [plain] = ingot.optimize(Decoder().module(), "quantize{format=int8}")
    lossy = replace(plain, details={"error": {"kl": 0.01234, "top1": 0.975, "inputs": "4 of text"}})
    assert receipt_table([plain, lossy]).splitlines()[0].endswith("error")
    assert receipt_table([lossy]).splitlines()[2].endswith("kl 0.0123, top1 0.975")
    assert receipt_table([replace(plain, details={"error": 0.5})]).splitlines()[2].endswith("  0.5")
    assert "error" not in receipt_table([plain])
    assert receipt_table([]) == "no passes were run"


def test_they_travel_in_the_artifact(tmp_path: Path) -> None:
    model = tmp_path / "model.ir"
    model.write_text(print_module(Decoder().module()))
    ingot.compile(model, tmp_path / "out", passes="fuse,take-logits,insert-kv-cache")
    shown = CliRunner().invoke(main, ["show", str(tmp_path / "out"), "--receipts", "--json"])
    fuse, _, cache = (Receipt(**record) for record in json.loads(shown.stdout))
    assert (fuse.stage, fuse.details["rules"]) == ("fuse", {"QueryKeyValue": 1})
    assert (cache.stage, cache.sites) == ("insert-kv-cache", 1)
    table = CliRunner().invoke(main, ["show", str(tmp_path / "out"), "--receipts"]).stdout
    assert table.splitlines()[-1].startswith("total")


@pytest.mark.parametrize("verb", [["compile", "-o", "OUT"], ["opt"]])
def test_an_impossible_order_is_refused_before_any_work(verb: list[str], tmp_path: Path) -> None:
    """Before the model is so much as looked for."""
    args = [a.replace("OUT", str(tmp_path / "out")) for a in verb]
    result = CliRunner().invoke(main, [args[0], str(tmp_path / "nowhere"), *args[1:], "--passes", "quantize,quantize"])
    assert result.exit_code == 1
    assert result.output.strip() == "error: quantize cannot follow quantize: its weights are quantised already"


def test_the_order_follows_what_was_done_before() -> None:
    module = Decoder().module()
    ingot.optimize(module, "insert-kv-cache")
    before = print_module(module)
    with pytest.raises(PassError, match="take-logits cannot follow what was done to this module before: it follows the sequence"):
        ingot.optimize(module, "dce,take-logits")
    assert print_module(module) == before
