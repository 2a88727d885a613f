"""awq: protects the channels that matter, by letting weights take on the size of the activations as far as it helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.errors import PassError
from ingot.ir.copy import copied
from ingot.ir.formats import FORMATS
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.types import TensorType, f64
from ingot.ir.value import Const
from ingot.passes.base import Context, Pass, option
from ingot.passes.calibration.moments import gather
from ingot.passes.calibration.track import Track
from ingot.passes.quantization import rtn
from ingot.passes.quantization.scale_sites import ScaleSite, scale_sites
from ingot.passes.quantization.scheme import Scheme

Rounding = Callable[[np.ndarray], np.ndarray]
"""A weight f32[o, k] as its codes would give it back."""
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Awq(Pass):
    """Multiplies columns of weights by s = size(x)^alpha and divides what makes x by it, before the weights are quantised.

    alpha is searched for each input by the squared error of what its linears compute when their weights are rounded to the
    nearest code (Lin et al. 2023, AWQ, arXiv 2306.00978, section 3.2). Nothing that is computed changes before that.
    """

    name = "awq"
    needs = ("calibration",)
    not_after = {"quantized": "the factors go into float weights"}  # noqa: RUF012

    format: str = option("int4", doc="format the weights will have", choices=tuple(FORMATS))
    group: int | None = option(None, doc="inputs that will share a scale; what is usual for the format when not given")
    symmetric: bool = option(False, doc="no zero points")

    def __post_init__(self) -> None:
        fmt = FORMATS[self.format]
        if self.group not in (None, *fmt.groups):
            raise PassError(f"{fmt.name} has groups of {' or '.join(map(str, fmt.groups))}, not of {self.group}",
                            hint="leave group out")

    def run(self, module: Module, ctx: Context) -> int:
        fmt = FORMATS[self.format]
        scheme = Scheme(fmt, fmt.group if self.group is None else self.group, self.symmetric)
        return protect(module, lambda const: scheme, ctx, made_by=self.name)


def protect(module: Module, scheme_of: Callable[[Const], Scheme | None], ctx: Context, *, made_by: str) -> int:
    """Move the best factors into the weights of the main func that have a scheme; returns at how many sites it helped.

    Memory: the live values of all calibration batches and the weights of one stretch of ops. Raises PassError, naming the
    weight, where an input is not finite.
    """
    journal = ctx.journal.section(module, ctx.stage, ctx.calibration)
    twin, twins = copied(module)
    track = Track(twin, ctx.calibration)
    order = {op: i for i, op in enumerate(module.main.ops)}
    sites = [site for site in scale_sites(module.main) if len(site.inputs) == 1]
    moved = 0
    chosen: list[float] = []
    for done, site in enumerate(sorted(sites, key=lambda site: order[next(iter(site.readers))])):
        first = next(iter(site.readers))
        assert isinstance(first.w, Const)
        ctx.step(done, len(sites), first.w.name)
        schemes = {reader: scheme_of(reader.w) if isinstance(reader.w, Const) else None for reader in site.readers}
        stop = twins[first.result].op
        if None in schemes.values() or stop is None:
            continue
        made = journal.read(first.w.name, {"factor": TensorType(f64, site.free.shape)})
        if made is None:
            track.advance(stop)
            second = gather(twins[first.x], [], track).second
            if not np.isfinite(second).all():
                raise PassError("the second moments of its inputs are not finite", where=f"@{first.w.name}",
                                hint="activations overflow on the calibration text")
            alpha, factor = _best(site, {r: s for r, s in schemes.items() if s is not None}, second)
            made = {"factor": factor}, {"alpha": alpha}
            journal.write(first.w.name, *made)
        chosen.append(made[1]["alpha"])
        if made[1]["alpha"]:
            site.move(module, made[0]["factor"], made_by=made_by)
            moved += 1
    ctx.details = {"alpha": round(float(np.mean(chosen)), 3)} if chosen else {}
    return moved


def _best(site: ScaleSite, schemes: dict[Linear, Scheme], second: np.ndarray) -> tuple[float, np.ndarray]:
    """The alpha that loses least, and its factor for the site's channels f64[n]."""
    weights = {reader: reader.w.weight.materialize().astype(np.float32)
               for reader in {reader.w: reader for reader in site.readers}.values() if isinstance(reader.w, Const)}
    size = site.gather({reader: np.sqrt(second.diagonal()) for reader in site.readers})
    least, best, kept = np.inf, 0.0, np.ones(len(size))
    for alpha in ALPHAS:
        factor = np.where(site.free, factors(size, alpha), 1.0)
        lost = 0.0
        for reader, w in weights.items():
            lost += lost_by(w, site.columns(reader, factor).astype(np.float32), second, _rounding(schemes[reader]))
        if lost < least:
            least, best, kept = lost, alpha, factor
    return best, kept


def factors(size: np.ndarray, alpha: float) -> np.ndarray:
    """size^alpha, f64[n], scaled so that the greatest and the least are each other's reciprocal; 1 where size is 0."""
    used = size > 0
    powers = np.where(used, np.where(used, size, 1.0) ** alpha, 1.0)
    scaled: np.ndarray = np.where(used, powers / np.sqrt(powers.max() * powers.min()), 1.0)
    return scaled


def lost_by(w: np.ndarray, factor: np.ndarray, second: np.ndarray, rounding: Rounding) -> float:
    """The squared error of w x, for inputs of these second moments, when w f32[o, k] times `factor` f32[k] is rounded."""
    error = rounding(w * factor) / factor - w
    return float(np.vdot(error @ second, error))


def _rounding(scheme: Scheme) -> Rounding:
    def rounded(w: np.ndarray) -> np.ndarray:
        return rtn.rounded(w, scheme.format, group=scheme.width(w.shape[1]), symmetric=scheme.symmetric,
                           per_tensor=scheme.per_tensor).decoded()

    return rounded
