"""rotate: turns the residual stream, and the values of every head, so that no channel stands out."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.errors import PassError
from ingot.ir.module import Func, Module
from ingot.ir.ops.attention import Attention
from ingot.ir.pattern import NoMatch
from ingot.passes.base import Context, Pass, option
from ingot.passes.rotation.hadamard import Rotation
from ingot.passes.rotation.heads import rotate_heads
from ingot.passes.rotation.residual import residual_streams
from ingot.passes.rotation.stream import rotate_residual


@dataclass(frozen=True)
class Rotate(Pass):
    """Multiplies the residual stream, and the values of each attention head, by a random orthogonal matrix.

    The matrices (randomised Hadamard ones where the size allows) go into the weights that write and read these values, so
    nothing more is computed at run time, but for one square linear before an output projection tied to the embedding.
    Outliers of single channels are spread over all (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456).
    """

    name = "rotate"
    not_after = {"quantized": "the rotation goes into float weights",  # noqa: RUF012
                 "cached": "caches hold the values of heads; put it before insert-kv-cache"}

    residual: bool = option(True, doc="turn the residual stream")
    heads: bool = option(True, doc="turn the values of every head")
    seed: int = option(0, doc="of the random signs")

    def run(self, module: Module, ctx: Context) -> int:
        sites = 0
        skipped: dict[str, str] = {}
        for func in module.funcs.values():
            if self.residual:
                sites += self._residual(func, skipped)
            if self.heads:
                sites += self._heads(func, skipped)
            func.drop_dead()
        ctx.details = {"skipped": skipped} if skipped else {}
        if not sites and skipped:
            raise PassError("nothing can be turned in this model: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
        return sites

    def _residual(self, func: Func, skipped: dict[str, str]) -> int:
        try:
            streams = residual_streams(func)
            for stream in streams:
                rotate_residual(func, stream, Rotation(stream.width, self.seed))
        except NoMatch as miss:
            skipped["residual"] = _told(miss)
            return 0
        return len(streams)

    def _heads(self, func: Func, skipped: dict[str, str]) -> int:
        sites = 0
        for op in [op for op in func.ops if isinstance(op, Attention)]:
            try:
                rotate_heads(func, op, self.seed)
                sites += 1
            except NoMatch as miss:
                skipped["heads"] = _told(miss)
        return sites


def _told(miss: NoMatch) -> str:
    return f"{miss.reason} ({miss.value!r})" if miss.value is not None else miss.reason
