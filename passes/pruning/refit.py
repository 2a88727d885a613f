"""Refitting linears of a pruned module to what those of the original compute, in closed form, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.ir.weights import ArrayWeight, call
from ingot.passes.base import Context
from ingot.passes.calibration.moments import added_to
from ingot.passes.calibration.track import Track
from ingot.passes.pruning.evidence import token_weights
from ingot.passes.stored import stored


@dataclass(frozen=True)
class Site:
    """A linear of the pruned module, the original one, and which of its rows and columns stay, bool[o'] and bool[k']."""

    linear: Linear
    original: Linear
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Means over tokens for a linear that reads x, the original one x', both less their means.

    mean, mean_before: of x f32[k] and x' f32[k']. second: x x^T f32[k, k]. cross: x' x^T f32[k', k]. power: x' x'^T f32[k', k'].
    lack, lack_mean: (r' - r) x^T f32[o, k] and r' - r f32[o], for a result that is added to r; None where there is no such.
    """

    mean: np.ndarray
    mean_before: np.ndarray
    second: np.ndarray
    cross: np.ndarray
    lack: np.ndarray | None
    lack_mean: np.ndarray | None
    power: np.ndarray

    def error(self, before: np.ndarray, w: np.ndarray) -> float:
        """The part of the variance of what `before` makes of x' that w does not make of x."""
        size = float(np.vdot(before @ self.power, before))
        lost = size - 2 * float(np.vdot(before @ self.cross, w)) + float(np.vdot(w @ self.second, w))
        return lost / size if size > 0 else 0.0


def solve(pair: Pair, before: np.ndarray, cut: np.ndarray, *, ridge: float, free_mean: bool) -> tuple[np.ndarray, np.ndarray]:
    """The weight f32[o, k] that on x comes nearest to what `before` f32[o, k'] makes of x' (and to what r lacks), and the mean of
    what is still missing, f32[o].

    W = argmin E|W x - before x' - (r' - r)|^2 + ridge h |W - cut|^2, h the mean second moment: least squares as in SliceGPT and
    OBS, pulled towards the cut weight f32[o, k]. free_mean: there is a bias to take on what is missing on average, so the weight
    is fitted to the rest alone.
    """
    second, cross, lack = pair.second, pair.cross, pair.lack
    missing_mean = before @ pair.mean_before + (0 if pair.lack_mean is None else pair.lack_mean)
    if not free_mean:
        second = second + np.outer(pair.mean, pair.mean)
        cross = cross + np.outer(pair.mean_before, pair.mean)
        if lack is not None and pair.lack_mean is not None:
            lack = lack + np.outer(pair.lack_mean, pair.mean)
    wanted = before @ cross - cut @ second + (0 if lack is None else lack)
    damped = second.astype(np.float64)
    damped += np.eye(len(damped)) * max(ridge * float(damped.diagonal().mean()), 1e-12)
    w = cut + np.linalg.solve(damped, wanted.T.astype(np.float64)).T.astype(np.float32)
    return w, np.asarray(missing_mean - w @ pair.mean, np.float32)


def refit(module: Module, original: Module, sites: Sequence[Site], ctx: Context, *, how: str, ridge: float,
          biases: bool, made_by: str) -> dict[str, float]:
    """Give linears of the main func of a pruned module new weights, in graph order; returns the error of each, by weight
    (see `Pair.error`).

    how: "fit" refits weights; "mean" only adds to biases. biases: give one to linears that have none. Tokens are counted as
    `token_weights` says. Memory: the live values of all batches, twice, and one weight; results lie in temporary files.
    """
    func = module.main
    track, before = Track(module, ctx.calibration), Track(original, ctx.calibration)
    order = {op: i for i, op in enumerate(func.ops)}
    errors: dict[str, float] = {}
    for done, site in enumerate(sorted(sites, key=lambda s: order[s.linear])):
        assert isinstance(site.linear.w, Const)
        ctx.step(done, len(sites), site.linear.w.name)
        errors[site.linear.w.name] = refit_site(module, site, track, before, how=how, ridge=ridge, biases=biases, made_by=made_by)
    return errors


def refit_site(module: Module, site: Site, track: Track, before: Track, *, how: str, ridge: float, biases: bool,
               made_by: str) -> float:
    """Give one linear new weights, on what `track` (of the module) and `before` (of the original) show; both are run as far.

    Returns its error. how, ridge, biases: as for `refit`.
    """
    linear, const = site.linear, site.linear.w
    assert isinstance(const, Const)
    track.advance(linear)
    before.advance(site.original)
    pair = _pair(site, track, before)
    full = _array(site.original.w)[site.rows]
    cut = _array(const)
    free = linear.bias is not None or biases
    if how == "fit":
        w, missing = solve(pair, full, cut, ridge=ridge, free_mean=free)
    else:
        w, missing = cut, full @ pair.mean_before - cut @ pair.mean
    module.set_weight(const, stored(const.name, w.astype(const.type.dtype.numpy), made_by))
    if free:
        _add_bias(module, linear, missing + (_array(site.original.bias)[site.rows] if site.original.bias is not None else 0),
                  made_by)
    return pair.error(full, w)


def _pair(site: Site, track: Track, before: Track) -> Pair:
    """The moments of a site."""
    import torch

    linear, original = site.linear, site.original
    k, wide, out = linear.w.type.shape[1], original.w.type.shape[1], linear.w.type.shape[0]
    other = added_to(linear)
    other_before = added_to(original)
    summed = other is not None and other_before is not None and other in track.live[0] and other_before in before.live[0]
    mean, mean_before, lack_mean = torch.zeros(k), torch.zeros(wide), torch.zeros(out)
    second, cross, lack, power = torch.zeros(k, k), torch.zeros(wide, k), torch.zeros(out, k), torch.zeros(wide, wide)
    total = 0.0
    rows_kept = torch.from_numpy(site.rows)
    for batch in range(len(track.live)):
        x, x_before = track.rows(linear.x, batch), before.rows(original.x, batch)
        weights = token_weights(original, before, batch)
        scaled = x * weights[:, None]
        total += float(weights.sum())
        mean += scaled.sum(0)
        mean_before += weights @ x_before
        second.addmm_(scaled.T, x)
        cross.addmm_(x_before.T, scaled)
        power.addmm_(x_before.T, x_before * weights[:, None])
        if summed and other is not None and other_before is not None:
            missing = before.rows(other_before, batch)[:, rows_kept] - track.rows(other, batch)
            lack.addmm_(missing.T, scaled)
            lack_mean += weights @ missing
    for tensor in (mean, mean_before, lack_mean, second, cross, lack, power):
        tensor /= total
    second.addr_(mean, mean, alpha=-1)
    cross.addr_(mean_before, mean, alpha=-1)
    lack.addr_(lack_mean, mean, alpha=-1)
    power.addr_(mean_before, mean_before, alpha=-1)
    return Pair(mean.numpy(), mean_before.numpy(), second.numpy(), cross.numpy(), lack.numpy() if summed else None,
                lack_mean.numpy() if summed else None, power.numpy())


def _array(value: Value | None) -> np.ndarray:
    assert isinstance(value, Const)
    return value.weight.materialize().astype(np.float32)


def _add_bias(module: Module, linear: Linear, bias: np.ndarray, made_by: str) -> None:
    assert isinstance(linear.w, Const)
    type_ = linear.w.type.dtype
    name = linear.bias.name if isinstance(linear.bias, Const) else f"{linear.w.name.removesuffix('.weight')}.bias"
    weight = ArrayWeight(bias.astype(type_.numpy), call("computed", **{"pass": made_by, "key": name}))
    if isinstance(linear.bias, Const) and linear.bias.users == (linear,):
        module.set_weight(linear.bias, weight)
    else:
        module.main.set_operand(linear, "bias", module.add_const(name, weight))
