"""The training loop: schedule, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ingot.errors import PassError
from ingot.ir.types import TensorType, f32
from ingot.passes.healing.distillation import Distillation
from ingot.passes.healing.student import Student
from ingot.passes.healing.text import Text
from ingot.passes.journal import Section

if TYPE_CHECKING:
    import torch

LOOKS = 10
"""How often in a run the student is judged on held-out text, and a checkpoint is written."""
STEADY = 0.5
"""The part of a run in which a high rate may add more noise than the student learns: nothing ends the run before."""
WARMUP = 0.1
"""The part of a run in which the learning rate rises."""
CLIP = 1.0
"""The greatest norm of a gradient."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. seconds: of processor time, instead of steps; count: pieces of text in a step; patience: how many
    looks in a row that are each worse than the one before end the run, 0: none do."""

    steps: int
    seconds: float | None
    rate: float
    count: int
    seed: int
    patience: int


@dataclass
class State:
    """How far a run has come. best: what held-out text lost least, at step `best_step`; curve: (step, loss) of every look."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    first: float = math.nan
    last: float = math.nan
    ended: bool = False
    curve: list[tuple[int, float]] = field(default_factory=list)


def rate_at(done: float) -> float:
    """The factor of the learning rate when the part `done` of a run is over: a linear rise, then half a cosine down to zero
    (Loshchilov and Hutter 2016, arXiv 1608.03983)."""
    return min(1.0, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(max(done - WARMUP, 0) / (1 - WARMUP), 1)))


def rises(losses: Sequence[float]) -> int:
    """How many of the last losses are each greater than the one before. (That a loss is not the least yet says little: a high
    rate adds noise, which goes when the rate falls.)"""
    count = 0
    while count + 1 < len(losses) and losses[-1 - count] > losses[-2 - count]:
        count += 1
    return count


class Training:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980) on the leaves of a student, which are left as they were at their best."""

    def __init__(self, student: Student, distillation: Distillation, text: Text, plan: Plan, section: Section,
                 report: Callable[[int, int, str], None]) -> None:
        import torch

        self.student, self.distillation, self.text, self.plan = student, distillation, text, plan
        self.section, self.report = section, report
        self.leaves = student.leaves
        self.optimizer = torch.optim.Adam(list(self.leaves.values()), lr=plan.rate, fused=True)
        self.state = State()
        self.best: dict[str, torch.Tensor] = {}
        self.wanted: list[torch.Tensor] = []
        self.resumed = 0

    def run(self, *, since: float) -> State:
        """Train to the end; the leaves are then those of the best look. Raises PassError when the loss is not finite.

        since: the processor time at which the run began.
        """
        self.wanted = self.distillation.predicted(self.text.held_out)
        if not self._resume():
            self._look()
        begun = time.process_time() - self.state.seconds if self.resumed else since
        while not self.state.ended:
            self.state.seconds = time.process_time() - begun
            before = self._done()
            self._step(before)
            self.state.step += 1
            self.state.seconds = time.process_time() - begun
            done = self._done()
            if int(done * LOOKS) > int(before * LOOKS) or done >= 1:
                self._look()
                worse = 0 < self.plan.patience <= rises([loss for _, loss in self.state.curve])
                self.state.ended = done >= 1 or (worse and done >= STEADY)
                self.state.seconds = time.process_time() - begun
                self._keep()
        self._restore()
        return self.state

    def _done(self) -> float:
        if self.plan.seconds is not None:
            return self.state.seconds / self.plan.seconds
        return self.state.step / self.plan.steps

    def _step(self, done: float) -> None:
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * rate_at(done)
        ids = self.text.batch(self.state.step, count=self.plan.count, seed=self.plan.seed)
        loss = self.distillation.loss(self.student.weights(), ids)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PassError(f"the loss is {value} at step {self.state.step}", hint="take a smaller lr")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.leaves.values(), CLIP)
        self.optimizer.step()
        self.state.last = value
        if self.state.step == 0:
            self.state.first = value
        total = self.plan.steps if self.plan.seconds is None else max(1, round(self.state.step / max(done, 1e-3)))
        self.report(min(self.state.step, total), total, f"loss {value:.3f}")

    def _look(self) -> None:
        loss = self.distillation.judged(self.student.weights(), self.text.held_out, self.wanted)
        self.state.curve.append((self.state.step, loss))
        if loss < self.state.best:
            self.state.best, self.state.best_step = loss, self.state.step
            self.best = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def _restore(self) -> None:
        import torch

        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(self.best[name])

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write what the run would go on from. The best leaves lie apart, and only once they are no longer the present ones."""
        if self.state.best_step < self.state.step:
            kept = self.section.read("best", {})
            if kept is None or kept[1] != {"step": self.state.best_step}:
                best = {name: leaf.numpy() for name, leaf in self.best.items()}
                self.section.write("best", best, {"step": self.state.best_step})
        arrays = {f"leaf {name}": leaf.detach().numpy() for name, leaf in self.leaves.items()}
        for name, leaf in self.leaves.items():
            arrays |= {f"{what} {name}": self.optimizer.state[leaf][what].numpy() for what in ("exp_avg", "exp_avg_sq")}
        self.section.write("state", arrays, vars(self.state))

    def _resume(self) -> bool:
        import torch

        kinds = {name: TensorType(f32, tuple(leaf.shape)) for name, leaf in self.leaves.items()}
        types = {f"{what} {name}": kind for name, kind in kinds.items() for what in ("leaf", "exp_avg", "exp_avg_sq")}
        kept = self.section.read("state", types)
        if kept is None:
            return False
        arrays, facts = kept
        state = State(**facts)
        best = {name: arrays[f"leaf {name}"] for name in kinds}
        if state.best_step < state.step:
            found = self.section.read("best", kinds)
            if found is None or found[1] != {"step": state.best_step}:
                return False
            best = found[0]
        self.state, self.resumed = state, state.step
        self.state.curve = [(int(step), float(loss)) for step, loss in state.curve]
        self.best = {name: torch.from_numpy(np.array(array)) for name, array in best.items()}
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(torch.from_numpy(np.array(arrays[f"leaf {name}"])))
                self.optimizer.state[leaf] = {
                    "step": torch.tensor(float(self.state.step)),
                    **{what: torch.from_numpy(np.array(arrays[f"{what} {name}"])) for what in ("exp_avg", "exp_avg_sq")}}
        return True
