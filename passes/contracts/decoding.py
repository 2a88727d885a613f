"""Whether a decoder with caches computes, piece by piece, what the whole sequence gives at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.ir.dims import evaluate
from ingot.ir.interpret import solve_dims
from ingot.ir.module import Module
from ingot.ir.types import TensorType
from ingot.passes.contracts.difference import EXACT, Difference, find_difference
from ingot.passes.contracts.samples import room_dim, rows_dim, sizes_for
from ingot.passes.contracts.trial import Finding, Inputs, Trial, Weights, run_on

LENGTH = 5
"""Tokens of the sequences that are decoded in every way."""


@dataclass(frozen=True)
class Piece:
    """One call of the decoder: `count` tokens of each row from `starts` on, of which the first `valid` are its own.

    The others pad a shorter row: they hold another token, and what is computed at them is nobody's business.
    """

    starts: tuple[int, ...]
    count: int
    valid: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DecodeTrial(Trial):
    """A prefill and steps of one token equal the full forward for every split of a short sequence; so do a prefill in
    pieces, and rows of different lengths. Caches hold random numbers at first. In float64, within `rtol`.

    With integer caches, whose rounding is judged as a loss, every way of decoding equals a single prefill instead.
    batch, length: the dims of token ids, as they are printed.
    """

    rounds: int = 1
    carries: ClassVar[bool] = True
    batch: str
    length: str
    rtol: float = EXACT

    def sizes(self, before: Module, after: Module, rng: np.random.Generator, *, least: bool) -> dict[str, int]:
        """Two rows of `LENGTH` tokens, and caches with room for one more."""
        dims = after.dims
        wanted = {self.batch: 2, self.length: LENGTH, room_dim(after): LENGTH + 1}
        given = {name: min(max(n, dims[name][0]), dims[name][1]) for name, n in wanted.items() if name in dims}
        rows = rows_dim(after)
        if rows is not None:
            given[rows] = given.get(self.length, LENGTH)
        return sizes_for(after, rng, **given)

    def inputs(self, before: Module, after: Module, rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Every row begins at position 0, and every output is asked for."""
        found = super().inputs(before, after, rng, sizes)
        for name in ("pos", "take"):
            if name in found:
                found[name] = np.broadcast_to(np.arange(found[name].shape[-1], dtype=found[name].dtype), found[name].shape)
        return found

    def judge(self, before: Module, after: Module, inputs: Inputs, weights: Weights | None = None) -> Finding | None:
        caches = {p.hint or "" for p in after.main.reuse.values()}
        run = _Decoder(self, after, inputs, caches, weights)
        whole = Piece((0,) * run.rows, run.tokens, (run.tokens,) * run.rows)
        rounding = any(not p.type.dtype.is_float for p in after.main.reuse.values())
        full = run.all([whole])[0] if rounding else run_on(before, inputs, weights)
        for ways in schedules(run.rows if run.ragged else 1, run.tokens):
            pieces = [p if len(p.starts) == run.rows else Piece(p.starts * run.rows, p.count, p.valid * run.rows) for p in ways]
            for piece, outputs in zip(pieces, run.all(pieces)):
                for i, (expected, got) in enumerate(zip(full, outputs)):
                    found = run.compare(i, expected, got, piece)
                    if found is not None:
                        return Finding(i, found, inputs, _words(pieces, piece))
        return None


def schedules(rows: int, tokens: int) -> Iterator[list[Piece]]:
    """Ways to decode `tokens` tokens: every split into a prefill and steps, pieces of two, and rows of different lengths."""
    def together(lengths: Sequence[int]) -> list[Piece]:
        starts = np.cumsum([0, *lengths])
        return [Piece((int(s),) * rows, n, (n,) * rows) for s, n in zip(starts, lengths)]

    for first in range(tokens, 0, -1):
        yield together([first, *[1] * (tokens - first)])
    if tokens > 3:
        yield together([2] * (tokens // 2) + [1] * (tokens % 2))
    if rows > 1 and tokens > 2:
        prefill = tokens - 2
        lengths = [max(prefill - r, 1) for r in range(rows)]
        yield [Piece((0,) * rows, prefill, tuple(lengths)),
               *(Piece(tuple(n + i for n in lengths), 1, (1,) * rows) for i in range(2))]


class _Decoder:
    """Feeds a module pieces of the full inputs and carries its caches."""

    def __init__(self, trial: DecodeTrial, module: Module, inputs: Inputs, caches: set[str], weights: Weights | None) -> None:
        self.trial = trial
        self.module = module
        self.inputs = inputs
        self.weights = weights
        fed = [p for p in module.main.params if (p.hint or "") not in caches]
        env = solve_dims([p.type for p in fed], [inputs[p.hint or ""].shape for p in fed])
        self.rows = env.get(trial.batch, 1)
        self.tokens = env.get(trial.length, 1)
        rng = np.random.default_rng(0)
        name = room_dim(module)
        room = {name: min(self.tokens + 1, module.dims[name][1])} if name in module.dims else {}
        self.empty = {p.hint or "": _random(rng, p.type, env | room) for p in module.main.reuse.values()}
        self.carried = {p.hint or "": i for i, p in module.main.reuse.items()}
        self.along = [n for n in (trial.length, rows_dim(module)) if n is not None]
        self.ragged = all(self._axes(p.type)[0] is not None for p in fed if self._axes(p.type)[1] is not None)

    def all(self, pieces: Sequence[Piece]) -> list[list[np.ndarray]]:
        """What each piece computes, one after the other."""
        caches, out = self.empty, []
        for piece in pieces:
            fed = {p.hint or "": self._fed(p.hint or "", p.type, piece) for p in self.module.main.params
                   if (p.hint or "") not in caches}
            got = run_on(self.module, {**fed, **caches}, self.weights)
            caches = {name: got[i] for name, i in self.carried.items()}
            out.append([a for i, a in enumerate(got) if i not in self.module.main.reuse])
        return out

    def compare(self, index: int, full: np.ndarray, got: np.ndarray, piece: Piece) -> Difference | None:
        """How one output of a piece differs from its part of the full one."""
        type_ = [v.type for i, v in enumerate(self.module.main.returns) if i not in self.module.main.reuse][index]
        expected = self._part(full, type_, piece, padded=False)
        if self._axes(type_)[1] is None or expected.shape != got.shape:
            return find_difference(expected, got, rtol=self.trial.rtol)
        batch, along = self._axes(type_)
        for row, valid in enumerate(piece.valid):
            a, b = (_rows(x, batch, row, along or 0, valid) for x in (expected, got))
            found = find_difference(a, b, rtol=self.trial.rtol)
            if found is not None and found.index is not None and batch is not None:
                return Difference(found.reason, (*found.index[:batch], row, *found.index[batch + 1:]), found.before, found.after)
            if found is not None:
                return found
        return None

    def _fed(self, name: str, type: TensorType, piece: Piece) -> np.ndarray:
        if name == "take":
            return np.broadcast_to(np.arange(piece.count, dtype=type.dtype.numpy), (self.rows, piece.count))
        if name == "pos":
            rows = np.asarray(piece.starts)[:, None] + np.arange(piece.count)
            return rows.astype(type.dtype.numpy)
        return self._part(self.inputs[name], type, piece, padded=True)

    def _part(self, array: np.ndarray, type: TensorType, piece: Piece, *, padded: bool) -> np.ndarray:
        """The piece's positions of a full array; `padded` rows end in copies of their first position."""
        batch, along = self._axes(type)
        if along is None:
            return array
        at = np.asarray(piece.starts)[:, None] + np.arange(piece.count)
        if padded:
            at = np.where(np.arange(piece.count) < np.asarray(piece.valid)[:, None], at, 0)
        part: np.ndarray
        if batch is None:
            part = np.take(array, at[0], axis=along)
        else:
            moved = np.moveaxis(array, (batch, along), (0, 1))
            part = np.moveaxis(moved[np.arange(self.rows)[:, None], np.minimum(at, self.tokens - 1)], (0, 1), (batch, along))
        return part

    def _axes(self, type: TensorType) -> tuple[int | None, int | None]:
        """(batch axis, sequence axis) of a tensor; None where it has none."""
        dims = list(map(str, type.dims))
        found = [dims.index(n) for n in self.along if n in dims]
        return dims.index(self.trial.batch) if self.trial.batch in dims else None, found[0] if found else None


def _rows(array: np.ndarray, batch: int | None, row: int, along: int, valid: int) -> np.ndarray:
    """The first `valid` positions of one row, which stays an axis."""
    if batch is not None:
        array = np.take(array, [row], axis=batch)
    return np.take(array, range(valid), axis=along)


def _random(rng: np.random.Generator, type: TensorType, env: dict[str, int]) -> np.ndarray:
    """Numbers that a cache may hold from before."""
    shape = tuple(evaluate(d, env) for d in type.dims)
    if type.dtype.is_float:
        return 3 * rng.normal(size=shape)
    return rng.integers(-9, 10, size=shape).astype(type.dtype.numpy)


def _words(pieces: Sequence[Piece], wrong: Piece) -> str:
    def one(piece: Piece) -> str:
        if len(set(piece.starts)) == 1 and set(piece.valid) == {piece.count}:
            return f"{piece.count} from {piece.starts[0]}"
        return " / ".join(f"{v} from {s}" for s, v in zip(piece.starts, piece.valid))

    said = [one(p) for p in pieces[: pieces.index(wrong) + 1]]
    return f"decoding tokens in pieces: {', then '.join(said)}"
