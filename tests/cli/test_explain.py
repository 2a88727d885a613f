"""ingot explain: near misses with their reason, value and place; refusals; stages of artifacts; and errors that lead here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ingot
from ingot.cli import main
from ingot.errors import PassError
from ingot.ir.text import parse_module, print_module
from ingot.testing import Decoder
from ingot.testing.written_out import Spelling

Run = Callable[..., Result]

NORMS = """module @m {{
  dim B in 1..4
  const @w : f32[4, 8] = safetensors(file="a", key="w")
  func @forward(%x: f32[B, 4, 8], %y: f32[B, 4, 8]) -> (f32[B, 4, 8], f32[B, 4, 8]) {{
    %eps = scalar() {{value = 1e-06}} : f32[]
    {first}
    {second}
    return %n_x, %n_y
  }}
}}
"""


def norm(x: str, axis: int) -> str:
    """An RMS norm of `x` over `axis`, written out."""
    dims = "B, 1, 8" if axis == 1 else "B, 4, 1"
    return f"""%s_{x} = mul(%{x}, %{x}) : f32[B, 4, 8]  loc("model.py:1")
    %m_{x} = mean(%s_{x}) {{axis = [{axis}], keep = true}} : f32[{dims}]  loc("model.py:2")
    %e_{x} = add(%m_{x}, %eps) : f32[{dims}]
    %r_{x} = rsqrt(%e_{x}) : f32[{dims}]
    %n_{x} = mul(%{x}, %r_{x}) : f32[B, 4, 8]  loc("model.py:5")"""


@pytest.fixture
def run() -> Run:
    def invoke(*args: object, input: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args], input=input)

    return invoke


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small decoder of two layers, with its stages."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "model.ir").write_text(print_module(Decoder(layers=2, place="pre", positions="rope").module(raw=True)))
    ingot.compile(folder / "model.ir", folder / "out", passes="canonicalize,recognize,fuse,dce")
    return folder / "out"


def test_a_near_miss_names_rule_reason_value_and_line(run: Run) -> None:
    text = NORMS.format(first=norm("x", 2), second=norm("y", 1))
    result = run("explain", "-", "--pass", "recognize", input=text)
    assert result.exit_code == 0, result.output
    first, says, *lines = result.stdout.split("\n\n")[0], *result.stdout.split("\n\n")[1].splitlines()
    assert first == "recognize on -: 1 site (BareRmsNorm 1)"
    assert says == "BareRmsNorm: x * rsqrt(mean(x * x) + eps)."
    assert lines == [
        "  5 of 5 ops fit, but: mean is over axes [1], not the last one alone",
        '    %n_y = mul(%y, %r_y) : f32[B, 4, 8]  loc("model.py:5")',
        '    %s_y = mul(%y, %y) : f32[B, 4, 8]  loc("model.py:1")',
    ]


def test_the_same_reason_at_many_places_is_told_once(run: Run) -> None:
    text = NORMS.format(first=norm("x", 1), second=norm("y", 1))
    [miss] = json.loads(run("explain", "-", "--pass", "recognize", "--json", input=text).stdout)["misses"]
    assert (miss["rule"], miss["matched"], miss["size"], miss["checked"]) == ("BareRmsNorm", 5, 5, True)
    assert miss["places"] == ["%n_x", "%n_y"]
    assert miss["loc"] == "model.py:1"
    shown = run("explain", "-", "--pass", "recognize", input=text).stdout
    assert shown.startswith("recognize on -: no sites")
    assert "x 2 places, the first %n_x; then %n_y" in shown


def test_the_most_advanced_comes_first() -> None:
    """All but one op of a pattern is near, wherever that op is."""
    text = NORMS.format(first=norm("x", 2).replace("rsqrt(%e_x)", "sqrt(%e_x)"), second=norm("y", 1))
    first, second = ingot.explain(parse_module(text), "recognize").misses
    assert (first.matched, first.size, first.checked) == (5, 5, True)
    assert first.reason.startswith("mean is over")
    assert (second.matched, second.size, second.checked) == (4, 5, False)
    assert second.reason == "expected rsqrt, found op sqrt"
    assert second.about is not None
    assert second.about.startswith("%r_x = sqrt(%e_x)")


def test_a_condition_on_numbers_that_a_dump_lacks_says_so() -> None:
    masked = Decoder(spelling=Spelling(scores="heads")).module(raw=True)
    text = print_module(masked)
    table = text.replace("  const @embed", '  const @table : f32[16, 16] = memory(key="table")\n  const @embed')
    where = next(line for line in text.splitlines() if " = where(" in line)
    name = where.split(" = ")[0].strip()
    cut = (f"    %rows = slice(@table) {{axis = 0, start = 0, stop = S}} : f32[S, 16]\n"
           f"    %cut = slice(%rows) {{axis = 1, start = 0, stop = S}} : f32[S, S]\n"
           f"    %square = reshape(%cut) {{shape = [1, 1, S, S]}} : f32[1, 1, S, S]\n"
           f"    {name} = expand(%square) {{shape = [B, 1, S, S]}} : f32[B, 1, S, S]")
    module = parse_module(table.replace(where, cut))
    before = print_module(module)
    found = ingot.explain(module, "recognize")
    [miss] = [m for m in found.misses if m.rule == "MaskedBias"]
    assert miss.reason == "the bias is not zero or minus infinity by position (its numbers are not in the dump)"
    assert print_module(module) == before  # a module is explained on a copy


def test_refusals_are_told_with_their_line(run: Run, tmp_path: Path) -> None:
    text = print_module(Decoder().module()).replace("causal = true", "causal = false")
    text = text.replace(" : f32[B, 1, S, 4]\n    %transpose", ' : f32[B, 1, S, 4]  loc("model.py:9")\n    %transpose')
    result = run("explain", "-", "--pass", "insert-kv-cache", input=text)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("insert-kv-cache refuses -:\n  model.py:9: not a causal decoder: attention (%attention) is ")
    assert "    %attention = attention(%q, %k, %v) {scale = 0.5}" in result.stdout
    again = run("explain", "-", "--pass", "insert-kv-cache,insert-kv-cache", input=print_module(Decoder().module()))
    assert "refuses -:\n  insert-kv-cache cannot follow what was done to this module before: the model has" in again.stdout
    record = json.loads(run("explain", "-", "--pass", "insert-kv-cache{dtype=int8}", "--json", input=text).stdout)
    assert record["sites"] is None
    assert "needs calibration text" in record["refusal"]


def test_an_artifact_is_explained_at_the_stage_its_own_run_began_with(run: Run, artifact: Path) -> None:
    fused = run("explain", artifact, "--pass", "fuse").stdout
    assert fused.startswith(f"fuse on {artifact} after 02-recognize: ")
    assert "QueryKeyValue 2, ResidualNorm 1" in fused
    assert "its input comes from op embedding, not from a sum" in fused
    traced = run("explain", artifact, "--pass", "fuse", "--after", "import").stdout
    assert traced.startswith(f"fuse on {artifact} after import: no sites")
    done = json.loads(run("explain", artifact, "--pass", "cse", "--json").stdout)
    assert done["source"] == str(artifact)
    wrong = run("explain", artifact, "--pass", "fuse", "--after", "nowhere")
    assert wrong.exit_code == 1
    assert "no stage nowhere" in wrong.output


def test_what_came_out_of_the_pass_itself_is_no_near_miss(artifact: Path) -> None:
    """Queries, keys and values that were just joined are not told as parts of one linear already."""
    found = ingot.explain(artifact, "fuse{qkv}")
    assert found.applied == {"QueryKeyValue": 2}
    assert found.misses == ()


def test_a_pass_that_matches_nothing_leads_here(run: Run, tmp_path: Path) -> None:
    dump = tmp_path / "m.ir"
    dump.write_text(print_module(Decoder(qkv="fused").module()))
    failed = run("opt", dump, "--passes", "fuse{qkv mlp}")
    assert failed.exit_code == 1
    hint = "ingot explain FILE.ir --pass "
    command = failed.output[failed.output.index(hint) + len(hint):].split(" (")[0]
    assert command == "'fuse{qkv}'"
    told = run("explain", dump, "--pass", "fuse{qkv}").stdout
    assert told.startswith(f"fuse{{qkv=true}} on {dump}: no sites")
    with pytest.raises(PassError, match="matched nothing"):
        ingot.optimize(Decoder(mlp="none").module(), "fuse{mlp}")


@pytest.mark.parametrize(("args", "part"), [
    (["--pass", "canonicalise"], "unknown pass canonicalise"),
    (["--pass", ""], "no pass to explain"),
    (["--pass", "fuse{norms}"], "no option norms"),
    (["--pass", "fuse", "--after", "cse"], "only an artifact keeps its stages"),
])
def test_bad_requests(run: Run, tmp_path: Path, args: list[str], part: str) -> None:
    dump = tmp_path / "m.ir"
    dump.write_text(print_module(Decoder().module()))
    result = run("explain", dump, *args)
    assert result.exit_code == 1
    assert part in result.output
