"""Places where a factor per channel may move from one weight to others without changing what is computed.

A norm's weight or a linear's rows make channels; when these come to linears through ops that pass a factor on, the rows may
be divided by what the linears' columns are multiplied with (SmoothQuant, arXiv 2211.10438, section 4; AWQ, arXiv 2306.00978,
section 3.2). The places are found by following the graph: the weight of a norm and the linears behind it, the rows of an up
projection and the columns of the down projection behind the product, value rows and output columns through attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.ir.module import Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import Norm
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, derived
from ingot.passes.quantization.channels import NONE, Channels


@dataclass(frozen=True)
class ScaleSite:
    """Channels that `source` makes and `readers` take up.

    free: bool[n], whether a factor on a channel comes to the readers alone. readers: which channel stands at each input of a
    linear, i64[k] with -1 where there is none that is free.
    """

    source: Norm | Linear
    free: np.ndarray
    readers: dict[Linear, np.ndarray]

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the readers read, each value once."""
        return tuple(dict.fromkeys(reader.x for reader in self.readers))

    def gather(self, by_reader: dict[Linear, np.ndarray]) -> np.ndarray:
        """The greatest of the readers' numbers f64[k] for each channel, f64[n]; 0 for channels that are not free."""
        out = np.zeros(len(self.free))
        for reader, channels in self.readers.items():
            held = channels != NONE
            np.maximum.at(out, channels[held], by_reader[reader][held])
        return out

    def columns(self, reader: Linear, factor: np.ndarray) -> np.ndarray:
        """What the columns of a reader are multiplied with, f64[k], for a factor f64[n] per channel."""
        channels = self.readers[reader]
        return np.where(channels == NONE, 1.0, factor[channels])

    def move(self, module: Module, factor: np.ndarray, *, made_by: str) -> None:
        """Divide what the source makes by `factor` f64[n] (1 where channels are not free), and multiply the readers' columns.

        made_by: the pass, as the origin of the weights says.
        """
        factor = np.where(self.free, factor, 1.0)
        func = self.source.func
        if not isinstance(self.source, Linear) and self.source.w is None and func is not None:
            ones = ArrayWeight(np.ones(len(factor), self.source.x.type.dtype.numpy))
            func.set_operand(self.source, "w", module.add_const(f"{self.source.results[0].hint}.weight", ones))
        for name, const in _weights(self.source).items():
            divisor = factor[:, None] if name == "w" and isinstance(self.source, Linear) else factor
            _scale(module, const, 1 / divisor, made_by)
        for weight, reader in {reader.w: reader for reader in self.readers}.items():
            assert isinstance(weight, Const)
            _scale(module, weight, self.columns(reader, factor), made_by)


def scale_sites(func: Func) -> Iterator[ScaleSite]:
    """The places of a func where a factor may move, in graph order; each linear is a reader in one of them at most."""
    channels = Channels(func)
    taken: set[Linear] = set()
    for op in func.ops:
        if not isinstance(op, Norm | Linear) or not _known(op):
            continue
        found = channels.reach(op.results[0])
        readers = {reader: _freed(at, found.blocked) for reader, at in found.readers.items()}
        if not readers or not taken.isdisjoint(readers) or not _movable(readers):
            continue
        width = op.results[0].type.dims[-1]
        free = np.isin(np.arange(width if isinstance(width, int) else 0), np.concatenate(list(readers.values())))
        if free.any():
            taken.update(readers)
            yield ScaleSite(op, free, readers)


def _freed(channels: np.ndarray, blocked: set[int]) -> np.ndarray:
    return np.where(np.isin(channels, list(blocked)), NONE, channels)


def _movable(readers: dict[Linear, np.ndarray]) -> bool:
    """Whether the readers' weights are floats that nothing else uses, or uses otherwise."""
    if not all(isinstance(reader.w, Const) and _own(reader.w, list(readers)) for reader in readers):
        return False
    first = {reader.w: at for reader, at in readers.items()}
    return all(np.array_equal(at, first[reader.w]) for reader, at in readers.items())


def _own(const: Const, users: Sequence[Op]) -> bool:
    return const.type.dtype.is_float and all(user in users for user in const.users)


def _known(op: Norm | Linear) -> bool:
    """Whether an op makes its channels by float weights of its own; norms may have none."""
    given = [getattr(op, name, None) for name in ("w", "bias")]
    return all(v is None or (isinstance(v, Const) and _own(v, (op,))) for v in given)


def _weights(op: Norm | Linear) -> dict[str, Const]:
    """The weights by which an op makes its channels, by operand."""
    given = {name: getattr(op, name, None) for name in ("w", "bias")}
    return {name: value for name, value in given.items() if isinstance(value, Const)}


def _scale(module: Module, const: Const, factor: np.ndarray, made_by: str) -> None:
    module.set_weight(const, derived(made_by, lambda w: np.asarray(w, np.float64) * factor, const.weight, type=const.type,
                                     key=const.name, exact=True))
