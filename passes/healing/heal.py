"""heal: what earlier passes have cost is won back by training."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import ClassVar

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.contracts.loss import has_logits
from ingot.passes.healing.directions import principal_inputs
from ingot.passes.healing.distillation import Distillation
from ingot.passes.healing.states import shared_states
from ingot.passes.healing.student import Student
from ingot.passes.healing.text import divided
from ingot.passes.healing.training import Plan, Training

FULL, LOW_RANK = 1e-4, 5e-4
"""Learning rates of whole weights, and of what low-rank additions are made of."""
SAMPLE = 2048
"""Tokens that show in which directions inputs vary."""
APART = 1.0
"""Hidden states whose squared difference is this much of their squares at first have nothing in common."""


@dataclass(frozen=True)
class Heal(Pass):
    """Trains a decoder to predict what it predicted before the passes that cost something.

    That is distillation on calibration text, from the module as it stood before the first lossy pass (merged adapters included).
    All weights and biases of linears and norms learn, whole or by low-rank additions that are merged afterwards: neither the
    graph nor a shape changes. Quantised weights learn through their rounding and are written back as codes of the same format;
    zeros of sparse weights stay zeros. A part of the text is held out, and the weights that did best on it are what stays, so
    that a run that goes too far does no harm. With `steps` the same seed gives the same weights; a run that was killed goes on
    from its last checkpoint, ten of which are written in a run.
    """

    name = "heal"
    contract: ClassVar[Contract] = "edit"
    needs = ("calibration", "teacher")
    wanted = True
    not_after = {"cached": "it trains on whole sequences; put it before insert-kv-cache"}  # noqa: RUF012
    may_match_nothing = True

    steps: int = option(300, doc="how many steps")
    minutes: float | None = option(None, doc="minutes of processor time, instead of steps")
    lr: float | None = option(None, doc=f"greatest learning rate ({FULL:g}; {LOW_RANK:g} with a rank)")
    rank: int = option(0, doc="of what is added to each matrix; 0: the matrices themselves learn")
    tokens: int = option(256, doc="of a step")
    length: int = option(256, doc="tokens of a sequence")
    hidden: float = option(1.0, doc="weight of the hidden states in the loss, beside the predictions")
    head: bool = option(False, doc="the token embedding and the output projection learn too")
    patience: int = option(4, doc="end, from half of the run on, when so many looks at held-out text in a row, a tenth of it "
                                "apart, were each worse than the one before; 0: never")
    seed: int = option(0, doc="of the order of the text")

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.minutes is not None and not self.minutes > 0):
            raise PassError("heal takes at least one step, or more than no minutes")
        if (self.lr is not None and not self.lr > 0) or self.hidden < 0:
            raise PassError("lr must be positive, hidden not negative")
        if min(self.rank, self.patience, self.seed) < 0 or self.length < 2 or self.tokens < self.length:
            raise PassError("rank, patience and seed are not negative, length is 2 or more, tokens at least length")

    def run(self, module: Module, ctx: Context) -> int:
        start = time.process_time()
        if ctx.teacher is None:
            raise PassError(f"{self.name} needs the model as it was before passes that cost something",
                            hint="put it behind them, in the same pipeline: prune,heal")
        if not has_logits(module):
            raise PassError(f"{self.name} teaches predictions of tokens, and this model makes none", hint="it is for decoders")
        if ctx.teacher.main.returns[0].type != module.main.returns[0].type:
            raise PassError("the model predicts other tokens than it did before",
                            hint=f"put {self.name} before what changes them")
        section = ctx.journal.section(module, ctx.stage, ctx.calibration)
        text = divided(ctx.calibration, length=self.length)
        sample = [row[None] for row in text.learned[:max(1, SAMPLE // text.learned.shape[1])]]
        directions = principal_inputs(module, sample, self.rank) if self.rank else {}
        student = Student(module, ctx.teacher, rank=self.rank, head=self.head, directions=directions)
        pairs = shared_states(student.module, ctx.teacher) if self.hidden else []
        distillation = Distillation(student.module, ctx.teacher, pairs, weight=self.hidden)
        distillation.compare(student.weights(), text.held_out[:1], limit=APART)
        plan = Plan(self.steps, None if self.minutes is None else 60 * self.minutes, self.lr or (LOW_RANK if self.rank else FULL),
                    max(1, self.tokens // text.learned.shape[1]), self.seed, self.patience)
        training = Training(student, distillation, text, plan, section, ctx.step)
        state = training.run(since=start)
        before = after = state.curve[0][1]
        if state.best_step:
            student.write(module, made_by=self.name)
            written = Distillation(module, ctx.teacher, [], weight=0)
            after = written.judged({}, text.held_out, training.wanted)
        ctx.details = {"held_out": {"before": before, "after": after, "tokens": int(text.held_out.size)}, "steps": state.step,
                       "best_step": state.best_step, "loss": {"first": state.first, "last": state.last}, "curve": state.curve,
                       "learned": sum(leaf.numel() for leaf in training.leaves.values()),
                       "hidden_states": len(distillation.pairs),
                       "cpu_seconds": round(time.process_time() - start, 1)}
        if training.resumed:
            ctx.details["resumed"] = training.resumed
        if not state.best_step:
            warnings.warn(f"{self.name} found nothing better than what was there: the model stays as it was; a smaller lr, or "
                          "more calibration text, may help", stacklevel=2)
            return 0
        if after > before:
            raise PassError(f"what was learned is lost where weights are stored: held-out text diverges by {after:.4g} nats, by "
                            f"{before:.4g} before and {state.best:.4g} in training", hint="take a wider element type")
        return len(student.parts)
