"""`ingot diff`: what it finds, what it leaves out, and how it says it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import ingot
from ingot.changes import Diff, diff
from ingot.cli import main
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from ingot.ir.text.printer import print_op
from ingot.passes.cleanup.cse import Cse
from ingot.passes.cleanup.dce import Dce
from ingot.passes.pipeline import run_pipeline
from ingot.testing import graphs
from tests.cli.artifacts import staged
from tests.ir.test_scale import llama

Run = Callable[..., Result]
LLAMA = llama(4)


@pytest.fixture
def run() -> Run:
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged(tmp_path_factory.mktemp("diff"), LLAMA, "canonicalize,dce,fuse,quantize,dce")


def changes(old: str, new: str) -> list[str]:
    """The changes between two texts, a line each, unfolded."""
    return [change.line for change in diff(parse_module(old), parse_module(new)).changes]


def plain(module: Module) -> list[str]:
    """The lines of a module after duplicates and dead ops are gone, values named by their place."""
    twin = copy_module(module)
    run_pipeline(twin, [Cse(), Dce()])
    named = {v: f"%{i}" for i, v in enumerate([*twin.main.params, *(r for op in twin.ops for r in op.results)])}
    return [*(print_op(op, named) for op in twin.ops), *(named.get(v, str(v)) for v in twin.main.returns)]


# --- what is a difference ---------------------------------------------------------------------------------------------


@given(graphs(), st.data())
@settings(max_examples=60)
def test_a_value_used_in_place_of_another_is_a_difference(module: Module, data: st.DataObject) -> None:
    twin = copy_module(module)
    assert diff(module, twin).equal
    values = [*twin.main.params, *(v for op in twin.ops for v in op.results)]
    used = [v for v in values if v.n_uses and v.op is not None]
    if not used:
        return
    old = data.draw(st.sampled_from(used))
    earlier = [v for v in values[:values.index(old)] if v.type == old.type]
    if not earlier:
        return
    twin.main.replace(old, data.draw(st.sampled_from(earlier)))
    found = diff(module, twin)
    assert found.equal == (not found.changes)
    if plain(module) != plain(twin):
        assert not found.equal
        assert not diff(twin, module).equal


def test_other_names_of_values_are_no_difference() -> None:
    renamed = re.sub(r"%(\w+)", r"%z_\1", LLAMA)
    found = diff(parse_module(LLAMA), parse_module(renamed))
    assert found.equal
    assert ("%ids", "%z_ids") in found.renamed
    assert not {name for pair in found.renamed for name in pair} & {"%n0", "%z_n0"}


def test_places_in_source_files_and_passes_done_are_no_difference() -> None:
    other = re.sub(r'  loc\("[^"]*"\)', "", LLAMA).replace("# ingot ir v1", "# ingot ir v1, after: cse")
    assert changes(LLAMA, other) == []


def test_an_attribute() -> None:
    other = LLAMA.replace("rms_norm(%x2, w=@l2.norm1) {eps = 1e-05}", "rms_norm(%x2, w=@l2.norm1) {eps = 1e-06}")
    assert changes(LLAMA, other) == ["~ %n2 = rms_norm(...)  eps: 1e-05 -> 1e-06"]


def test_an_operand() -> None:
    other = LLAMA.replace("%p1 = mul(%s1, %u1)", "%p1 = mul(%s1, %g1)")
    assert changes(LLAMA, other) == ["~ %p1 = mul(...)  y: %u1 -> %g1"]


def test_an_op_replaced_shows_what_its_users_take_now() -> None:
    assert changes(LLAMA, LLAMA.replace("%s1 = silu(%g1)", "%t = sigmoid(%g1)").replace("mul(%s1", "mul(%t")) == [
        "- %s1 = silu(%g1) : bf16[B, S, 128]  => %t", "+ %t = sigmoid(%g1) : bf16[B, S, 128]"]


def test_an_op_put_between_shows_what_its_users_took() -> None:
    other = LLAMA.replace("    %s1 = silu(%g1)", "    %t = neg(%g1) : bf16[B, S, 128]\n    %s1 = silu(%t)")
    assert changes(LLAMA, other) == ["+ %t = neg(%g1) : bf16[B, S, 128]  <= %g1"]


def test_swapped_operands() -> None:
    other = LLAMA.replace("%h0 = add(%x0, %o0)", "%h0 = add(%o0, %x0)")
    assert changes(LLAMA, other) == ["~ %h0 = add(...)  x: %x0 -> %o0, y: %o0 -> %x0"]


def test_an_optional_operand_that_comes() -> None:
    other = LLAMA.replace("attention(%qr3, %kr3, %vt3)", "attention(%qr3, %kr3, %vt3, pos=%pos)")
    assert changes(LLAMA, other) == ["~ %a3 = attention(...)  pos: none -> %pos"]


WEIGHTS = """module @m {{
  const @a : f32[4] = safetensors(file="m.safetensors", key="a")
  const {b}
  func @forward(%x: f32[4]) -> (f32[4]) {{
    %y = mul(%x, @a) : f32[4]
    %z = mul(%y, {name}) : f32[4]
    return %z
  }}
}}
"""


@pytest.mark.parametrize(("name", "line", "expected"), [
    ("@b", '@b : f32[4] = safetensors(file="m.safetensors", key="c")',
     ['~ @b  origin: safetensors(file="m.safetensors", key="b") -> safetensors(file="m.safetensors", key="c")']),
    ("@b", '@b : f32[1] = safetensors(file="m.safetensors", key="b")', ["~ @b  type: f32[4] -> f32[1]"]),
    ("@c", '@c : f32[4] = safetensors(file="m.safetensors", key="b")', []),
    ("@c", '@c : f32[1] = safetensors(file="n.safetensors", key="b")',
     ['~ @c  type: f32[4] -> f32[1], origin: safetensors(file="m.safetensors", key="b") -> '
      'safetensors(file="n.safetensors", key="b"), name: @b']),
])
def test_weights(name: str, line: str, expected: list[str]) -> None:
    old = WEIGHTS.format(b='@b : f32[4] = safetensors(file="m.safetensors", key="b")', name="@b")
    assert changes(old, WEIGHTS.format(b=line, name=name)) == expected


def test_a_weight_that_comes_and_one_that_goes() -> None:
    both = WEIGHTS.format(b='@b : f32[4] = safetensors(file="m.safetensors", key="b")', name="@b")
    one = re.sub(r"\n  const @b[^\n]*", "", both).replace("mul(%y, @b)", "mul(%y, @a)")
    assert changes(both, one) == ["~ %z = mul(...)  y: @b -> @a", "- @b : f32[4]"]
    assert changes(one, both) == ["~ %z = mul(...)  y: @a -> @b",
                                  '+ @b : f32[4] = safetensors(file="m.safetensors", key="b")']


def test_parameters_returns_dims_and_facts() -> None:
    old = """module @m {
  dim B in 1..8
  meta kind = "decoder"
  meta gone = 1
  func @forward(%x: f32[B], %c: f32[B], %o: f32[B]) -> (f32[B], f32[B] reuse %c) {
    %y = exp(%x) : f32[B]
    %z = neg(%c) : f32[B]
    return %y, %z
  }
}
"""
    new = """module @m {
  dim B in 1..9
  dim S in 1..2
  meta kind = "encoder"
  meta come = true
  func @forward(%x: f32[B], %c: f32[B], %p: i64[S]) -> (f32[B], f32[B], i64[S]) {
    %y = exp(%x) : f32[B]
    %z = neg(%c) : f32[B]
    return %y, %z, %p
  }
}
"""
    assert changes(old, new) == [
        "- %o: f32[B]", "+ %p: i64[S]", "~ result 1  reuse: %c -> none", "+ %p: i64[S]", "~ B  1..8 -> 1..9", "+ S = 1..2",
        '~ kind  "decoder" -> "encoder"', "- gone = 1", "+ come = true"]


def test_types_that_follow_are_counted_apart() -> None:
    other = CASTS.replace("%x: f32[4]", "%x: f16[4]").replace("-> (f32[4])", "-> (f16[4])").replace(": f32[4]\n", ": f16[4]\n")
    assert changes(CASTS, other) == ["~ %x  type: f32[4] -> f16[4]", "~ f32[4] -> f16[4]"]


CASTS = """module @m {
  func @forward(%x: f32[4]) -> (f32[4]) {
    %y = exp(%x) : f32[4]
    %z = neg(%y) : f32[4]
    return %z
  }
}
"""


# --- how it is shown --------------------------------------------------------------------------------------------------


def folded(found: Diff) -> list[str]:
    return [f"{fold.first.line}   {fold.times}" for fold in found.folded()]


def test_the_same_change_in_every_layer_is_one_line() -> None:
    other = re.sub(r"%s(\d) = silu", r"%s\1 = relu", LLAMA)
    found = diff(parse_module(LLAMA), parse_module(other))
    assert len(found.changes) == 8
    assert folded(found) == ["- %s0 = silu(%g0) : bf16[B, S, 128]  => %s0   x 4 layers",
                             "+ %s0 = relu(%g0) : bf16[B, S, 128]   x 4 layers"]


def test_different_changes_do_not_fold() -> None:
    other = LLAMA.replace("%n1 = rms_norm(%x1, w=@l1.norm1) {eps = 1e-05}", "%n1 = rms_norm(%x1, w=@l1.norm1) {eps = 1e-04}")
    other = other.replace("%n2 = rms_norm(%x2, w=@l2.norm1) {eps = 1e-05}", "%n2 = rms_norm(%x2, w=@l2.norm1) {eps = 1e-03}")
    assert len(diff(parse_module(LLAMA), parse_module(other)).folded()) == 2


def test_a_large_model_after_a_pass() -> None:
    old = parse_module(llama(32))
    new = parse_module(re.sub(r"%s(\d+) = silu", r"%s\1 = relu", llama(32)))
    assert [fold.times for fold in diff(old, new).folded()] == ["x 32 layers", "x 32 layers"]


def test_two_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.ir").write_text(LLAMA)
    (tmp_path / "b.ir").write_text(re.sub(r"%s(\d) = silu", r"%s\1 = relu", LLAMA))
    result = run("diff", tmp_path / "a.ir", tmp_path / "b.ir")
    assert result.exit_code == 0, result.output
    counted = "98 ops, 0.2 M parameters, 328.7 kB"
    assert result.stdout.splitlines() == [
        f"--- {tmp_path / 'a.ir'}: {counted}", f"+++ {tmp_path / 'b.ir'}: {counted}", "", "ops: 4 removed, 4 added",
        "- %s0 = silu(%g0) : bf16[B, S, 128]  => %s0   x 4 layers", "+ %s0 = relu(%g0) : bf16[B, S, 128]   x 4 layers"]
    full = run("diff", tmp_path / "a.ir", tmp_path / "b.ir", "--full").stdout
    assert "- %s3 = silu(%g3) : bf16[B, S, 128]  => %s3\n" in full
    record = json.loads(run("diff", tmp_path / "a.ir", tmp_path / "b.ir", "--json").stdout)
    assert not record["equal"]
    assert len(record["changes"]) == 8
    assert record["changes"][0] == {
        "kind": "removed", "subject": "op", "text": "%s0 = silu(%g0) : bf16[B, S, 128]", "details": [], "instead": ["%s0"],
        "layer": "l.0", "count": 1}
    assert record["before"]["ops"] == 98


def test_exit_codes_and_equal_modules(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.ir").write_text(LLAMA)
    (tmp_path / "b.ir").write_text(LLAMA.replace("%s0 = silu", "%s0 = relu"))
    (tmp_path / "c.ir").write_text(LLAMA.replace("%ids", "%tokens"))
    assert run("diff", tmp_path / "a.ir", tmp_path / "b.ir").exit_code == 0
    assert run("diff", tmp_path / "a.ir", tmp_path / "b.ir", "--exit-code").exit_code == 1
    same = run("diff", tmp_path / "a.ir", tmp_path / "a.ir", "--exit-code")
    assert (same.exit_code, same.stdout) == (0, "no difference\n")
    assert run("diff", tmp_path / "a.ir", tmp_path / "c.ir").stdout == "no difference but in names:\n  %ids is now %tokens\n"


def test_colours_on_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.ir").write_text(LLAMA)
    (tmp_path / "b.ir").write_text(LLAMA.replace("%s0 = silu", "%s0 = relu"))
    assert "\x1b[31m- %s0 = silu" in run("diff", tmp_path / "a.ir", tmp_path / "b.ir", "--color").stdout
    assert "\x1b" not in run("diff", tmp_path / "a.ir", tmp_path / "b.ir").stdout


def test_stages_of_an_artifact(run: Run, artifact: Path) -> None:
    fused = run("diff", artifact, "--from", "01-canonicalize", "--to", "fuse").stdout
    assert "gate_up" in fused
    assert run("diff", f"{artifact}@01-canonicalize", f"{artifact}@fuse").stdout.splitlines()[2:] == fused.splitlines()[2:]
    whole = run("diff", artifact, "--to", "fuse").stdout
    assert whole.splitlines()[0].startswith(f"--- {artifact}@import: ")
    assert re.search(r"^\+ .* = skip_rms_norm\(.* x 4 layers$", whole, re.MULTILINE)
    assert run("diff", artifact, artifact, "--after", "fuse").stdout == "no difference\n"
    assert run("diff", f"{artifact}@import", artifact, "--json").exit_code == 0


@pytest.mark.parametrize(("args", "code", "part"), [
    (("{a}",), 2, "give two things to compare"),
    (("{a}", "{b}", "--from", "import"), 2, "give two things to compare"),
    (("{a}", "--after", "import"), 2, "give two things to compare"),
    (("{a}", "{dir}/none.ir"), 1, "cannot read the dump"),
    (("{a}", "{b}@fuse"), 1, "only an artifact keeps its stages"),
    (("{a}", "{broken}"), 1, "broken.ir:1:"),
])
def test_errors(run: Run, tmp_path: Path, args: tuple[str, ...], code: int, part: str) -> None:
    for name, text in (("a", LLAMA), ("b", LLAMA), ("broken", "nonsense")):
        (tmp_path / f"{name}.ir").write_text(text)
    paths = {name: str(tmp_path / f"{name}.ir") for name in ("a", "b", "broken")} | {"dir": str(tmp_path)}
    result = run("diff", *(arg.format(**paths) for arg in args))
    assert result.exit_code == code
    assert part in result.output
    assert "Traceback" not in result.output


def test_an_unknown_stage_lists_the_stages(run: Run, artifact: Path) -> None:
    result = run("diff", artifact, "--from", "nothing")
    assert result.exit_code == 1
    assert "no stage nothing" in result.output
    assert "import, canonicalize, dce, fuse, quantize" in result.output


def test_python(artifact: Path) -> None:
    found = ingot.diff(f"{artifact}@01-canonicalize", f"{artifact}@fuse")
    assert not found.equal
    assert found.before.ops > found.after.ops
    assert ingot.diff(artifact, str(artifact)).equal
