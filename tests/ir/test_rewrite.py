"""Patterns, the reasons of near misses, and rewriting until nothing fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from ingot.errors import IRError
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.layout import Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Clamp, Mul, Neg, Relu, Rsqrt, Sigmoid, Silu, Sub
from ingot.ir.ops.reduce import Mean
from ingot.ir.pattern import C, Either, Match, NoMatch, P, Pattern, S, Through, V, match, nearest, scalar_of
from ingot.ir.rewrite import Miss, Rule, rewrite
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import TensorType, bf16, bool_, f32, i64
from ingot.ir.value import Const, Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.testing import assert_exact, copy_module, graphs

SWISH: Pattern = P(Mul, V("x"), P(Sigmoid, V("x")))


def func(body: str, *, returns: str = "%y") -> Module:
    """A module over %x and %z (f32[4]) and the weight @w."""
    return parse_module(f"""module @m {{
  const @w : f32[4] = dense([1.0, 2.0, 3.0, 4.0])
  func @forward(%x: f32[4], %z: f32[4]) -> (f32[4]) {{
    {body}
    return {returns}
  }}
}}""")


def last(body: str) -> Op:
    return func(body).main.ops[-1]


def why(pattern: Pattern, op: Op) -> NoMatch:
    with pytest.raises(NoMatch) as caught:
        match(pattern, op)
    return caught.value


@pytest.mark.parametrize("operands", ["%x, %s", "%s, %x"])
def test_commutative_ops_match_in_both_orders(operands: str) -> None:
    op = last(f"%s = sigmoid(%x) : f32[4]\n%y = mul({operands}) : f32[4]")
    m = match(SWISH, op)
    assert m["x"].hint == "x"
    assert [o.name for o in m.ops] == ["mul", "sigmoid"]
    assert m.op is op


def test_other_ops_match_in_order_only() -> None:
    pattern = P(Sub, V("x"), P(Sigmoid, V("x")))
    assert match(pattern, last("%s = sigmoid(%x) : f32[4]\n%y = sub(%x, %s) : f32[4]"))["x"].hint == "x"
    miss = why(pattern, last("%s = sigmoid(%x) : f32[4]\n%y = sub(%s, %x) : f32[4]"))
    assert miss.reason == "expected sigmoid, found a parameter"


def test_one_name_is_one_value() -> None:
    miss = why(SWISH, last("%s = sigmoid(%z) : f32[4]\n%y = mul(%x, %s) : f32[4]"))
    assert miss.reason == "x is two different values"
    assert miss.value is not None


@pytest.mark.parametrize(("pattern", "body", "reason", "about"), [
    (P(Neg, P(Relu, V("x"))), "%s = silu(%x) : f32[4]\n%y = neg(%s) : f32[4]", "expected relu, found op silu", "s"),
    (P(Neg, P(Relu, V("x"))), "%y = neg(@w) : f32[4]", "expected relu, found a weight", "w"),
    (P(Neg, P((Relu, Silu), V("x"))), "%y = neg(%x) : f32[4]", "expected relu or silu, found a parameter", "x"),
    (P(Clamp, V("x"), least=0.0), "%y = clamp(%x) {least = 1.0} : f32[4]", "clamp.least is 1.0", "y"),
    (P(RmsNorm, V("x"), V("w")), "%y = rms_norm(%x) : f32[4]", "rms_norm has 1 operands, expected 2", "y"),
    (P(Mul, C("w"), C("w")), "%y = mul(%x, @w) : f32[4]", "w is a parameter, not a weight", "x"),
    (P(Mul, V("x"), S("s")), "%y = mul(%x, @w) : f32[4]", "expected a scalar constant s, found a weight", "w"),
    (P(Mul, V("x"), S(equals=0.5)), "%h = scalar() {value = 0.25} : f32[]\n%y = mul(%x, %h) : f32[4]",
     "constant 0.25, expected 0.5", "h"),
])
def test_a_miss_gives_its_reason_and_value(pattern: Pattern, body: str, reason: str, about: str) -> None:
    module = func(body)
    miss = why(pattern, module.main.ops[-1])
    assert miss.reason == reason
    assert miss.value is not None
    assert miss.value.hint == about


def test_the_miss_is_the_furthest_one() -> None:
    pattern = Either(P(Neg, P(Relu, P(Sigmoid, V("x")))), P(Neg, P(Silu, V("x"))))
    miss = why(pattern, last("%r = relu(%x) : f32[4]\n%y = neg(%r) : f32[4]"))
    assert miss.reason == "expected sigmoid, found a parameter"


NORM: Pattern = P(Mul, V("x"), P(Rsqrt, P(Add, P(Mean, P(Mul, V("x"), V("x")), keep=True), S("eps", equals=0.5))))
WRITTEN = """%s = mul(%x, %x) : f32[4]
    %m = mean(%s) {axis = [0], keep = true} : f32[1]
    %e = scalar() {value = 0.5} : f32[]
    %a = add(%m, %e) : f32[1]
    %r = rsqrt(%a) : f32[1]
    %y = mul(%x, %r) : f32[4]"""


@pytest.mark.parametrize(("old", "new", "matched", "reason", "about"), [
    ("%r = rsqrt", "%r = sqrt", 4, "expected rsqrt, found op sqrt", "r"),
    ("%s = mul(%x, %x)", "%s = mul(%z, %z)", 5, "x is two different values", "z"),
    ("mul(%x, %r)", "mul(%z, %r)", 5, "x is two different values", "x"),
    ("value = 0.5", "value = 0.25", 5, "constant 0.25, expected 0.5", "e"),
    ("= mean(%s)", "= sum(%s)", 4, "expected mean, found op sum", "m"),
])
def test_nearest_forgives_one_mistake(old: str, new: str, matched: int, reason: str, about: str) -> None:
    """What else fits is counted on both sides of it."""
    miss = nearest(NORM, last(WRITTEN.replace(old, new)))
    assert miss is not None
    assert (miss.matched, miss.reason, miss.value and miss.value.hint) == (matched, reason, about)


def test_nearest_forgives_one_mistake_only() -> None:
    assert NORM.size == 5
    assert nearest(NORM, last(WRITTEN)) is None
    two = nearest(NORM, last(WRITTEN.replace("rsqrt", "sqrt").replace("= mean", "= sum")))
    assert two is not None
    assert two.matched == 1


def test_through_looks_past_ops() -> None:
    pattern = P(Neg, Through(P(Relu, V("x"))))
    m = match(pattern, last("""%r = relu(%x) : f32[4]
        %a = cast(%r) {dtype = f64} : f64[4]
        %b = cast(%a) {dtype = f32} : f32[4]
        %y = neg(%b) : f32[4]"""))
    assert [o.name for o in m.ops] == ["neg", "cast", "cast", "relu"]
    assert match(pattern, last("%r = relu(%x) : f32[4]\n%y = neg(%r) : f32[4]"))["x"].hint == "x"
    other = Through(P(Relu, V("x")), (Transpose, Cast))
    assert match(other, last("%r = relu(%x) : f32[4]\n%y = transpose(%r) {perm = [0]} : f32[4]"))["x"].hint == "x"
    with pytest.raises(NoMatch):
        match(pattern, last("%r = relu(%x) : f32[4]\n%t = transpose(%r) {perm = [0]} : f32[4]\n%y = neg(%t) : f32[4]"))


def test_bind_and_callable_attributes() -> None:
    op = last("%y = clamp(%x) {least = 1.0} : f32[4]")
    m = match(P(Clamp, V("x"), bind="clamp", least=lambda v: v is not None and v > 0), op)
    assert m["clamp"] is op
    m.extra["more"] = 3
    assert m["more"] == 3
    assert match(P(Clamp), op).ops == (op,)


def test_weights_match_behind_casts() -> None:
    module = func("%c = cast(@w) {dtype = f32} : f32[4]\n%y = mul(%x, %c) : f32[4]")
    assert match(P(Mul, V("x"), C("w")), module.main.ops[-1])["w"].hint == "c"


@pytest.mark.parametrize(("make", "number"), [
    (lambda b: b(Scalar(0.5)), 0.5),
    (lambda b: b(Full((2,), 3)), 3.0),
    (lambda b: b(Cast(b(Scalar(2.5)), bf16)), 2.5),
    (lambda b: b(Cast(b(Scalar(2.5)), i64)), 2.0),
    (lambda b: b(Cast(b(Scalar(2.5)), bool_)), 1.0),
    (lambda b: b(Cast(b(Scalar(float("inf"))), i64)), None),
    (lambda b: b.const("w", ArrayWeight(np.array(7.0, np.float32))), 7.0),
    (lambda b: b.const("w", ArrayWeight(np.zeros(2, np.float32))), None),
    (lambda b: b(Neg(b(Scalar(1.0)))), None),
    (lambda b: b.func.add_param("s", TensorType(f32, ())), None),
])
def test_scalar_of(make: Any, number: float | None) -> None:
    assert scalar_of(make(Builder(Module().add_func("f")))) == number


class FuseSwish(Rule):
    """x * sigmoid(x) -> silu(x)."""

    pattern = SWISH

    def build(self, m: Match, b: Builder) -> Value:
        return b(Silu(m["x"]))


class FoldNegations(Rule):
    """-(-x) -> x."""

    pattern = P(Neg, P(Neg, V("x")))

    def build(self, m: Match, b: Builder) -> Value:
        return m["x"]  # type: ignore[no-any-return]


class Swap(Rule):
    """x + y -> y + x, without end."""

    pattern = P(Add, V("x"), V("y"))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Add(m["y"], m["x"]))


class Nothing(Rule):
    """relu(x) -> itself, without end."""

    pattern = P(Relu, V("x"))

    def build(self, m: Match, b: Builder) -> Value:
        return m.op.result


class Picky(Rule):
    """relu(relu(x)) -> relu(x), except where the check objects."""

    pattern = P(Relu, P(Relu, V("x")))

    def check(self, m: Match) -> None:
        if m["x"].op is None:
            raise NoMatch("x is a parameter", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Relu(m["x"]))


def test_rewriting_replaces_sites_and_cleans_up() -> None:
    module = func("%s = sigmoid(%x) : f32[4]\n%m = mul(%s, %x) : f32[4]\n%y = add(%m, @w) : f32[4]")
    before = copy_module(module)
    assert rewrite(module, [FuseSwish()]) == 1
    verify(module)
    assert [op.name for op in module.ops] == ["silu", "add"]
    assert module.main.ops[0].result.hint == "m"
    assert_exact(before, module)
    epoch = module.epoch
    assert rewrite(module, [FuseSwish()]) == 0
    assert module.epoch == epoch


def test_new_sites_are_found_in_later_rounds() -> None:
    module = func("\n    ".join(f"%n{i} = neg(%{'x' if i == 0 else f'n{i - 1}'}) : f32[4]" for i in range(7)), returns="%n6")
    rewrite(module, [FoldNegations()])
    assert [op.name for op in module.ops] == ["neg"]
    verify(module)


def test_shared_inner_ops_stay_for_their_other_users() -> None:
    module = func("%s = sigmoid(%x) : f32[4]\n%m = mul(%x, %s) : f32[4]\n%y = add(%m, %s) : f32[4]")
    rewrite(module, [FuseSwish()])
    assert [op.name for op in module.ops] == ["sigmoid", "silu", "add"]


def test_results_that_nobody_uses_are_not_rewritten() -> None:
    module = func("%a = neg(%x) : f32[4]\n%b = neg(%a) : f32[4]\n%y = relu(%x) : f32[4]")
    assert rewrite(module, [FoldNegations()]) == 0


@pytest.mark.parametrize("rule", [Swap(), Nothing()], ids=lambda r: r.name)
def test_rules_without_end_are_refused(rule: Rule) -> None:
    module = func("%a = add(%x, %z) : f32[4]\n%y = relu(%a) : f32[4]")
    with pytest.raises(IRError, match=f"rules {rule.name} still apply after 16 rounds"):
        rewrite(module, [rule])
    verify(module)


def test_near_misses_are_recorded_with_their_reason() -> None:
    module = func("""%s = sigmoid(%z) : f32[4]
        %m = mul(%x, %s) : f32[4]
        %r = relu(%x) : f32[4]
        %q = relu(%r) : f32[4]
        %y = add(%m, %q) : f32[4]""")
    misses: list[Miss] = []
    assert rewrite(module, [FuseSwish(), Picky()], misses=misses) == 0
    assert {(m.rule, m.op.name, m.reason) for m in misses} == {
        ("FuseSwish", "mul", "x is two different values"), ("Picky", "relu", "x is a parameter")}
    assert {m.value.hint for m in misses if m.value} == {"z", "x"}


def test_a_check_may_refuse_one_order_and_take_the_other() -> None:
    class IntoWeight(Rule):
        """add(x, y) -> sub(x, neg(y)) where y is a weight, whichever operand it is."""

        pattern = P(Add, V("x"), V("y"))

        def check(self, m: Match) -> None:
            if not isinstance(m["y"], Const):
                raise NoMatch("y is not a weight", m["y"])

        def build(self, m: Match, b: Builder) -> Value:
            return b(Sub(m["x"], b(Neg(m["y"]))))

    for operands in ("%x, @w", "@w, %x"):
        assert rewrite(func(f"%y = add({operands}) : f32[4]"), [IntoWeight()]) == 1
    misses: list[Miss] = []
    assert rewrite(func("%y = add(%x, %z) : f32[4]"), [IntoWeight()], misses=misses) == 0
    assert [(m.reason, m.value and m.value.hint) for m in misses] == [("y is not a weight", "z")]


def test_a_rule_for_another_type_is_refused() -> None:
    class Widen(Rule):
        pattern = P(Relu, V("x"))

        def build(self, m: Match, b: Builder) -> Value:
            return b(Cast(m["x"], bf16))

    with pytest.raises(IRError, match="other type"):
        rewrite(func("%y = relu(%x) : f32[4]"), [Widen()])


def test_patterns_do_not_match_through_operands_they_do_not_name() -> None:
    module = func("%y = relu(%x) : f32[4]")
    w = module.add_const("v", ArrayWeight(np.ones((4, 4), np.float32)))
    b = Builder(module.main)
    with pytest.raises(NoMatch, match="linear has 3 operands, expected 2"):
        match(P(Linear, V("x"), V("w")), b.add(Linear(module.main.param("x"), w, module.consts["w"])))


@given(graphs())
def test_rewriting_random_modules_keeps_what_they_compute(module: Module) -> None:
    before = copy_module(module)
    rewrite(module, [FuseSwish(), FoldNegations(), Picky()])
    verify(module)
    assert_exact(before, module, rounds=2)
    text = print_module(module)
    assert rewrite(module, [FuseSwish(), FoldNegations(), Picky()]) == 0
    assert print_module(module) == text
