"""smooth: makes activations easy to round by moving the size of their channels into the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const
from ingot.passes.base import Context, Pass, option
from ingot.passes.calibration.calibrate import peaks
from ingot.passes.quantization.scale_sites import ScaleSite, scale_sites


@dataclass(frozen=True)
class Smooth(Pass):
    """Divides channels by s and multiplies the columns of the linears that read them: s = max|x|^alpha / max|w|^(1 - alpha).

    max|x| is over the calibration text, max|w| over the columns of all linears that read the channel. Nothing that is
    computed changes (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, equation 4).
    """

    name = "smooth"
    needs = ("calibration",)
    not_after = {"quantized": "the factors go into float weights"}  # noqa: RUF012

    alpha: float = option(0.5, doc="how much of the size of the activations the weights take on, 0 to 1")

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise PassError(f"smooth takes an alpha of 0 to 1, not {self.alpha}")

    def run(self, module: Module, ctx: Context) -> int:
        sites = [site for func in module.funcs.values() for site in scale_sites(func)]
        seen = peaks(module, [x for site in sites for x in site.inputs], ctx, keep=(-1,))
        for site in sites:
            x = site.gather({reader: seen[reader.x].reshape(-1) for reader in site.readers})
            w = site.gather({reader: column_peaks(reader) for reader in site.readers})
            site.move(module, self._factor(site, x, w), made_by=self.name)
        ctx.details = {"channels": int(sum(site.free.sum() for site in sites))}
        return len(sites)

    def _factor(self, site: ScaleSite, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Channels that are zero on the text or in all weights stay as they are."""
        used = site.free & (x > 0) & (w > 0)
        factor: np.ndarray = np.where(used, x, 1) ** self.alpha / np.where(used, w, 1) ** (1 - self.alpha)
        return factor


def column_peaks(reader: Linear) -> np.ndarray:
    """The greatest magnitude in each column of a linear's weight, f64[k]."""
    assert isinstance(reader.w, Const)
    peaks: np.ndarray = np.abs(reader.w.weight.materialize()).max(0).astype(np.float64)
    return peaks
