"""Slices: what is equal by congruence is never run, layers that are alike are run once, and a mistake is found where it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

import ingot.ir.interpret
from ingot.errors import ContractError
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Mul, Silu, Sub
from ingot.ir.text import parse_module
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup.dce import Dce
from ingot.passes.contracts.congruence import Congruence
from ingot.passes.contracts.contract import Check
from ingot.passes.contracts.slices import extract, positional, shape_of
from ingot.passes.contracts.snapshot import Snapshot
from ingot.passes.contracts.sweep import Sweep
from ingot.passes.contracts.trial import ExactTrial
from ingot.passes.pipeline import run_pass
from tests.passes import planted
from tests.passes.planted import stack

SLICES = Check(small=0, budget=100_000)
"""Everything is too large to run whole, and slices are not widened far."""


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the ops that the interpreter evaluates."""
    counts: Counter[str] = Counter()
    plain = ingot.ir.interpret.evaluate_op

    def counting(op: Op, *args: object) -> list[np.ndarray]:
        counts[op.name] += 1
        return plain(op, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ingot.ir.interpret, "evaluate_op", counting)
    return counts


@pytest.mark.parametrize(("p", "value"), [
    (planted.SwappedSub(only=7), "%h8"), (planted.WiderWindow(only=7), "%a7"), (planted.DroppedScale(only=7), "%s7"),
    (planted.FoldedScale(half=True, only=7), "%n7")], ids=str)
def test_a_mistake_in_one_layer_is_found_without_running_the_others(p: Pass, value: str, evaluated: Counter[str]) -> None:
    module = stack(12)
    with pytest.raises(ContractError) as caught:
        run_pass(module, p, Context(), check=SLICES)
    assert caught.value.value == value
    # Three widths of the slice, three draws, both sides: less than two runs of the twelve layers.
    assert 0 < sum(evaluated.values()) < 2 * len(module.main.ops)
    assert evaluated["attention"] <= 12
    assert evaluated["embedding"] == 0


def test_a_mistake_in_one_of_many_rewritten_layers(evaluated: Counter[str]) -> None:
    """Every layer is rewritten, each is like the others, and one reads the weight of the layer before."""

    @dataclass(frozen=True)
    class Twice(Pass):
        """x @ w as x @ (w + w) / 2, with the weight of another layer in the sixth."""

        name = ""

        def run(self, module: Module, ctx: Context) -> int:
            for i in range(12):
                w = module.consts[f"l{i - (i == 5)}.down"]
                op = module.consts[f"l{i}.down"].users[0]
                assert isinstance(op, Linear)
                b = Builder(module.main, before=op)
                double = b(Linear(op.x, w))
                module.main.replace(op.result, b(Sub(b(Mul(double, b(_two()))), double)))
            module.main.drop_dead()
            return 12

    module = stack(12)
    with pytest.raises(ContractError) as caught:
        run_pass(module, Twice(), Context(), check=SLICES)
    assert "@l5.down" in str(caught.value)
    assert evaluated["attention"] <= 12


def _two() -> Op:
    from ingot.ir.ops.creation import Scalar
    from ingot.ir.types import f32

    return Scalar(2.0, f32)


def test_what_the_pass_left_alone_is_not_run(evaluated: Counter[str]) -> None:
    receipt = run_pass(stack(12), planted.NegatedSub(), Context(), check=SLICES)
    details = receipt.details["check"]
    assert (details["how"], details["slices"], details["alike"]) == ("slices", 2, 11)  # the first layer and the last
    assert evaluated == {"sub": 8, "neg": 6, "add": 6}  # three draws each, and once to see that numbers come out


def test_the_last_of_many_alike_is_run_too() -> None:
    """A mistake that does not show in how a layer is built."""

    @dataclass(frozen=True)
    class Forgetful(Pass):
        """Doubles and halves every norm's weight, but only doubles the last one's."""

        name = ""

        def run(self, module: Module, ctx: Context) -> int:
            for i in range(6):
                const = module.consts[f"l{i}.norm"]
                numbers = const.weight.materialize() * np.float32(2 if i == 5 else 1)
                op = const.users[0]
                module.main.set_operand(op, "w", module.add_const(f"twin{i}", ArrayWeight(numbers.copy(), "computed()")))
            module.main.drop_dead()
            return 6

    for const in (module := stack(6)).consts.values():  # too large to be compared by content
        if const.name.endswith("norm"):
            const.weight = _Opaque(const.weight.materialize())
    with pytest.raises(ContractError) as caught:
        run_pass(module, Forgetful(), Context(), check=SLICES)
    assert caught.value.value == "%n5"


class _Opaque(ArrayWeight):
    """A weight of which nothing is known until it is read."""


def test_congruence_follows_added_equalities() -> None:
    module = parse_module("""module @m {
      func @forward(%x: f32[4], %y: f32[4]) -> (f32[4], f32[4], f32[4]) {
        %a = add(%x, %y) : f32[4]
        %b = add(%y, %x) : f32[4]
        %c = sub(%x, %y) : f32[4]
        %d = neg(%a) : f32[4]
        %e = neg(%c) : f32[4]
        %f = relu(%d) : f32[4]
        %g = relu(%e) : f32[4]
        return %f, %g, %b
      }
    }""")
    a, b, c, _, _, f, g = (op.result for op in module.main.ops)
    equal = Congruence()
    equal.add(module.main)
    assert equal.same(a, b)  # addition commutes
    assert not equal.same(f, g)
    equal.union(a, c)
    assert equal.same(f, g)
    assert not equal.same(a, module.main.params[0])
    assert set(equal.members(c)) == {a, b, c}


def test_a_slice_is_a_module_of_its_own() -> None:
    module = stack(2)
    ops = {op.results[0].hint: op for op in module.main.ops}
    part = extract(module, [ops["d1"].results[0]], [ops["d1"], ops["u1"], ops["two1"], ops["s1"]], {ops["g1"].results[0]: "in"})
    assert [p.hint for p in part.main.params] == ["in"]
    assert [op.name for op in part.main.ops] == ["silu", "scalar", "mul", "linear"]
    assert list(part.consts) == ["l1.down"]
    assert part.main.returns[0].type == ops["d1"].results[0].type


def test_layers_are_alike_whatever_they_are_called() -> None:
    def layer(module: Module, i: int, linear: str) -> Module:
        ops = {op.results[0].hint: op for op in module.main.ops}
        return extract(module, [ops[f"{linear}{i}"].results[0]], [ops[f"{linear}{i}"]], {})

    module = stack(3)
    assert shape_of(layer(module, 0, "q")) == shape_of(layer(module, 2, "q"))
    assert shape_of(layer(module, 0, "q")) != shape_of(layer(module, 0, "k"))
    same, other = layer(module, 1, "q"), layer(module, 2, "q")
    assert shape_of(same, same) != shape_of(same, other)  # the same tensor twice, and two


def test_positions_and_masks_are_never_random() -> None:
    module = parse_module("""module @m {
      dim S in 1..8
      const @freq : f32[2] = dense([1.0, 0.1])
      const @table : f32[8, 2] = memory()
      func @forward(%ids: i64[S], %x: f32[S, 2]) -> (f32[S, 2], f32[S, 2]) {
        %n = arange() {count = S} : i64[S]
        %c = reshape(%n) {shape = [S, 1]} : i64[S, 1]
        %p = cast(%c) {dtype = f32} : f32[S, 1]
        %angle = mul(%p, @freq) : f32[S, 2]
        %row = embedding(%ids, @table) : f32[S, 2]
        %sum = add(%x, %angle) : f32[S, 2]
        %low = argmax(%x) {keep = true} : i64[S, 1]
        return %sum, %row
      }
    }""")
    found = {v.hint for v in positional(module)}
    assert found == {"ids", "n", "c", "p", "angle", "low"}


def test_pairs_follow_replacements_to_their_end() -> None:
    module = stack(1)
    done = Snapshot(module)
    silu = next(op for op in module.main.ops if isinstance(op, Silu))
    b = Builder(module.main, before=silu)
    first = b(Silu(silu.x), hint="first")
    module.main.replace(silu.result, first)
    second = b(Silu(silu.x), hint="second")
    module.main.replace(first, second)
    module.main.drop_dead()
    done.close()
    assert done.changed
    assert module.replaced is None
    named = {old.hint: new for old, new in done.pairs()}
    assert named["s0"] is second
    assert named["h1"].op is not None
    assert [old.hint for old, _ in done.pairs()][:2] == ["ids", "pos"]
    assert len(done.pairs()) == len(module.main.params) + len(module.main.ops)


def test_a_sweep_of_two_equal_modules_runs_nothing() -> None:
    module = stack(2)
    done = Snapshot(module)
    done.close()
    assert not done.changed
    sweep = Sweep(done.before, module, done.pairs(), ExactTrial(), budget=0)
    assert sweep.run() is None
    assert (sweep.tried, sweep.alike) == (0, 0)
    receipt = run_pass(module, Dce(), Context(), check=SLICES)
    assert not receipt.changed
    assert "check" not in receipt.details
