"""Axis maps tell the truth: a changed position of an operand's axis changes only what the map allows.

For a label that is not mixed, position p of an operand reaches position p of the results' axes with that label, and no
other; the index of a composite axis is row-major, a concatenated one is offset by the parts before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ingot.errors import IRError
from ingot.ir.axes import Axis, AxisMap, parse_axes, reshape_axes
from ingot.ir.dims import evaluate, sym
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.pointwise import Add
from ingot.ir.text import parse_module
from ingot.ir.types import TensorType, f32
from ingot.ir.value import Value
from ingot.testing import Example, examples

SIZES = {"B": 2, "S": 4, "T": 7}


def _label_sizes(op: Op, axes: AxisMap) -> dict[str, int]:
    """Sizes of the labels that stand alone somewhere, then of the parts of sums that are missing by subtraction."""
    sizes: dict[str, int] = {}
    for value, labels in (*zip(op.operands, axes.operands), *zip(op.results, axes.results)):
        for dim, axis in zip(value.type.dims, labels):
            if len(axis) == 1:
                sizes.setdefault(axis[0], evaluate(dim, SIZES))
    return sizes | {label: evaluate(size, SIZES) for label, size in axes.sizes.items()}


def _split(axis: Axis, position: int, size: int, sizes: dict[str, int]) -> dict[str, int]:
    """The positions along the labels of a (composite) axis. At most one label of a composite may be of unknown size."""
    if len(axis) == 1:
        return {axis[0]: position}
    known = {label: sizes[label] for label in axis if label in sizes}
    missing = [label for label in axis if label not in known]
    assert len(missing) <= 1, f"sizes of {missing} cannot be told"
    if missing:
        known[missing[0]] = size // int(np.prod(list(known.values())))
    out: dict[str, int] = {}
    for label in reversed(axis):
        position, out[label] = divmod(position, known[label])
    return out


def _allowed(axes: AxisMap, label: str, position: int, sizes: dict[str, int]) -> Iterator[tuple[str, set[int]]]:
    """(label, positions) pairs: where a result's axis carries that label, only those positions may change."""
    yield label, {position}
    for total, parts in axes.sums.items():
        offset = 0
        for part in parts:
            size = sizes.get(part)
            if part == label:
                yield total, {position + offset}
            if total == label and size is not None:
                yield part, {position - offset} & set(range(size))
            if size is None:
                break
            offset += size
    for many, few in axes.multiples.items():
        if few == label:
            n = sizes[many] // sizes[few]
            yield many, set(range(n * position, n * position + n))


def _may_change(op: Op, axes: AxisMap, operand: int, axis: int, position: int, result: int) -> np.ndarray:
    """Which elements of a result the map lets change, as a mask of its shape."""
    value, out = op.operands[operand], op.results[result]
    shape = tuple(evaluate(d, SIZES) for d in out.type.dims)
    mask = np.ones(shape, bool)
    sizes = _label_sizes(op, axes)
    size = evaluate(value.type.dims[axis], SIZES)
    for label, at in _split(axes.operands[operand][axis], position, size, sizes).items():
        if label in axes.mixed:
            continue
        for wanted, positions in _allowed(axes, label, at, sizes):
            for a, labels in enumerate(axes.results[result]):
                if wanted in labels:
                    fits = [_split(labels, p, shape[a], sizes)[wanted] in positions for p in range(shape[a])]
                    mask &= np.array(fits).reshape([-1 if i == a else 1 for i in range(len(shape))])
    return mask


def _changed(module: Module, inputs: dict[str, np.ndarray], name: str, axis: int, position: int) -> list[np.ndarray]:
    """Which elements of the results differ when one position of one axis of one input is other."""
    before = run(module, inputs)
    array = inputs[name].copy()
    place = tuple(slice(None) if a != axis else position for a in range(array.ndim))
    if array.dtype.kind in "f":
        array[place] += 1.25
    elif array.dtype.kind == "b":
        array[place] = ~array[place]
    else:
        array[place] = np.where(array[place] == 0, 1, array[place] - np.sign(array[place]))
    after = run(module, inputs | {name: array})
    return [~((a == b) | ((a != a) & (b != b))) for a, b in zip(before, after)]


def _inputs(example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    inputs = example.inputs(rng, **SIZES)
    if example.cls.name == "cache.write":  # other positions than the last ones, so that one more is still inside
        inputs["pos"] = inputs["pos"] - inputs["pos"][:, :1] + 1
    return inputs


def _lie(example: Example, axes: AxisMap | None = None) -> str:
    """Where the example contradicts the axis map (its op's own); "" when nowhere."""
    module = example.module()
    op = module.main.ops[0]
    axes = axes or op.axis_map()
    assert [len(a) for a in axes.operands] == [v.type.rank for v in op.operands]
    assert [len(a) for a in axes.results] == [v.type.rank for v in op.results]
    for seed in range(2):
        inputs = _inputs(example, np.random.default_rng(seed))
        for k, value in enumerate(op.operands):
            for axis, dim in enumerate(value.type.dims):
                for position in {0, evaluate(dim, SIZES) // 2, evaluate(dim, SIZES) - 1}:
                    for r, changed in enumerate(_changed(module, inputs, value.hint or "", axis, position)):
                        wrong = np.argwhere(changed & ~_may_change(op, axes, k, axis, position, r))
                        if len(wrong):
                            return f"position {position} of axis {axis} of %{value.hint} reaches {wrong[0]}: {axes}"
    return ""


@pytest.mark.parametrize("example", [e for e in examples() if e.module().main.params], ids=lambda e: e.id)
def test_a_position_reaches_only_what_the_map_allows(example: Example) -> None:
    assert _lie(example) == ""


@pytest.mark.parametrize(("id_", "field", "value"), [
    ("flip", "mixed", frozenset()), ("softmax", "mixed", frozenset()), ("cumsum", "mixed", frozenset()),
    ("rms_norm", "mixed", frozenset()), ("rope", "mixed", frozenset()), ("attention/causal", "multiples", {"e": "g"}),
    ("concat", "sums", {"a2": ("p2", "p1", "p0")}), ("split", "sums", {"a2": ("p1", "p0")}),
    ("slice", "sums", {"a2": ("part", "before", "after")}), ("reshape", "results", ((("r0",), ("r1",), ("r3",), ("r2",)),)),
    ("reshape/merge", "results", ((("r1", "r0"), ("r2",)),)), ("transpose", "results", ((("a0",), ("a1",), ("a2",)),)),
    ("conv/grouped", "operands", ((("n",), ("o",), ("s0",), ("s1",)), (("o",), (), (), ()))),
    ("matmul", "results", ((("...1",), ("n",), ("m",)),)), ("cache.write", "results", ((("b",), ("t",), ("g",), ("d",)),)),
])
def test_a_false_map_is_found(id_: str, field: str, value: object) -> None:
    """The check above is worth something: maps that lie are caught."""
    example = next(e for e in examples() if e.id == id_)
    axes = example.module().main.ops[0].axis_map()
    assert getattr(axes, field) != value
    assert _lie(example, replace(axes, **{field: value})) != ""


def test_causal_labels_reach_only_later_positions() -> None:
    """`causal` on the keys' label: key j reaches query i only when j <= i, or j <= pos[i] where positions are given."""
    for example in examples():
        op = example.module().main.ops[0]
        axes = op.axis_map()
        if not axes.causal:
            continue
        inputs = _inputs(example, np.random.default_rng(3))
        assert axes.causal == {"t"}
        pos = inputs.get("pos", np.arange(SIZES["S"])[None])
        for name in ("k", "v"):
            for key in range(inputs["k"].shape[2]):
                changed = _changed(example.module(), inputs, name, 2, key)[0]
                assert not changed[np.broadcast_to((pos < key)[:, None, :, None], changed.shape)].any()


def test_labels_agree_in_size() -> None:
    """A label shared by operands and results has one size everywhere."""
    for example in examples():
        op = example.module().main.ops[0]
        axes = op.axis_map()
        sizes: dict[str, object] = {}
        for value, labels in (*zip(op.operands, axes.operands), *zip(op.results, axes.results)):
            for dim, axis in zip(value.type.dims, labels):
                if len(axis) == 1 and dim != 1:
                    assert sizes.setdefault(axis[0], dim) == dim, f"{example.id}: {axis[0]} in {axes}"


def _value(*dims: object) -> Value:
    return Value(TensorType(f32, dims))  # type: ignore[arg-type]


B, S = sym("B"), sym("S")


def test_ellipsis_is_aligned_at_the_right() -> None:
    axes = parse_axes(MatMul(_value(B, 3, S, 4), _value(3, 4, 5)))
    assert axes.operands == ((("...2",), ("...1",), ("m",), ("k",)), (("...1",), ("k",), ("n",)))
    assert axes.results == ((("...2",), ("...1",), ("m",), ("n",)),)


def test_broadcast_axes_carry_nothing() -> None:
    axes = parse_axes(MatMul(_value(1, S, 4), _value(B, 4, 5)))
    assert axes.operands[0] == ((), ("m",), ("k",))
    assert Add(_value(B, 1, 4), _value(S, 1)).axis_map().operands == ((("a0",), (), ("a2",)), (("a1",), ()))


def test_follow() -> None:
    axes = Linear(_value(B, S, 8), _value(4, 8)).axis_map()
    assert axes.follow(0, 0) == ("...2", [(0, 0)])
    assert axes.follow(0, 2) == ("i", [])
    assert axes.follow(1, 0) == ("o", [(0, 2)])
    assert reshape_axes((B, 8), (B, 2, 4)).follow(0, 1) == ("", [])


@pytest.mark.parametrize(("source", "target", "left", "right"), [
    ((B, S, 8), (B, S, 2, 4), "r0 r1 (r2 r3)", "r0 r1 r2 r3"),
    ((B, S, 8), (B * S, 8), "r0 r1 r2", "(r0 r1) r2"),
    ((B, 1, 8), (B, 8), "r0 () r1", "r0 r1"),
    ((B, 8), (1, B, 8, 1), "r0 r1", "() r0 r1 ()"),
    ((4, 6), (8, 3), "m2.0 m2.1", "w2.0 w2.1"),
    ((), (1, 1), "", "() ()"),
    ((B, 2, S, 4), (B, 2 * S, 4), "r0 r1 r2 r3", "r0 (r1 r2) r3"),
    ((2 * B, S), (B, 2 * S), "m2.0 m2.1", "w2.0 w2.1"),
])
def test_reshape(source: tuple[object, ...], target: tuple[object, ...], left: str, right: str) -> None:
    def text(axes: tuple[Axis, ...]) -> str:
        return " ".join(a[0] if len(a) == 1 else f"({' '.join(a)})" for a in axes)

    axes = reshape_axes(source, target)  # type: ignore[arg-type]
    assert (text(axes.operands[0]), text(axes.results[0])) == (left, right)
    assert axes.mixed == {label for ls in axes.operands[0] for label in ls if label.startswith("m")}


def test_reshape_of_nothing_makes_no_false_pairs() -> None:
    axes = reshape_axes((0, 3), (0, 5))
    assert set(axes.operands[0]) & set(axes.results[0]) == {("r0",)}


def test_notation_that_does_not_fit_is_refused() -> None:
    op = Linear(_value(B, 8), _value(4, 8))
    with pytest.raises(IRError, match="says nothing of operand w"):
        parse_axes(op, "x[... i] -> [... o]")
    with pytest.raises(IRError, match="names 3 axes of a tensor with 2"):
        parse_axes(op, "x[... i], w[a o i] -> [... o]")


def test_every_op_of_a_model_has_a_map() -> None:
    module = parse_module("""
module @m {
  dim S in 1..8
  func @forward(%x: f32[1, S, 8], %w: f32[8]) -> (f32[1, S, 8]) {
    %n = rms_norm(%x, w=%w) : f32[1, S, 8]
    %y = add(%n, %x) : f32[1, S, 8]
    return %y
  }
}
""")
    maps = [op.axis_map() for op in module.ops]
    assert maps[0].mixed == {"d"}
    assert maps[0].follow(0, 1) == ("...1", [(0, 1)])
