"""The loss by which a student comes to compute what its teacher does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.module import Module
from ingot.ir.value import Value
from ingot.passes.calibration.calibrate import inputs_for

if TYPE_CHECKING:
    import torch


class Distillation:
    """Kullback-Leibler divergence of the student's predictions from the teacher's (Hinton et al. 2015, arXiv 1503.02531, at
    temperature 1, over the whole vocabulary), and how far its hidden states are off.

    The latter: of each pair of values the squared difference over the teacher's squares, by token, so that the few tokens of huge
    activations count as much as others; the mean over tokens and pairs. weight: what it counts for.
    """

    def __init__(self, student: Module, teacher: Module, pairs: Sequence[tuple[Value, Value]], *, weight: float) -> None:
        import torch

        from ingot.backends.torch.executor import Executor

        self.pairs = list(pairs)
        self.weight = weight
        self.student = Executor(student, dtype=torch.float32, keep=True, params={})
        self.teacher = Executor(teacher, dtype=torch.float32, keep=True)

    def loss(self, weights: Mapping[str, torch.Tensor], ids: np.ndarray) -> torch.Tensor:
        """The loss of the student with these weights on token ids [n, s], in nats per token."""
        import torch

        with torch.no_grad():
            wanted, theirs = self._run(self.teacher, ids, [v for _, v in self.pairs])
        self.student.params = dict(weights)
        logits, own = self._run(self.student, ids, [v for v, _ in self.pairs])
        total = divergence(logits, wanted)
        if self.weight and self.pairs:
            total = total + self.weight * torch.stack([_off(a, b) for a, b in zip(own, theirs)]).mean()
        return total

    def predicted(self, ids: np.ndarray) -> list[torch.Tensor]:
        """The teacher's logits, less their greatest, for each sequence of token ids [n, s], f16[1, s, vocabulary]."""
        import torch

        with torch.no_grad():
            logits = (self._run(self.teacher, row[None], [])[0] for row in ids)
            return [(each - each.amax(-1, keepdim=True)).half() for each in logits]

    def judged(self, weights: Mapping[str, torch.Tensor], ids: np.ndarray, wanted: Sequence[torch.Tensor]) -> float:
        """The mean divergence of the student's predictions from `predicted` ones, in nats per token."""
        import torch

        self.student.params = dict(weights)
        with torch.no_grad():
            return float(np.mean([float(divergence(self._run(self.student, row[None], [])[0], each.float()))
                                  for row, each in zip(ids, wanted, strict=True)]))

    def compare(self, weights: Mapping[str, torch.Tensor], ids: np.ndarray, *, limit: float) -> None:
        """Forget the pairs of values that are further apart than `limit` on token ids [n, s]: they mean something else (where
        the residual stream was turned, say)."""
        import torch

        self.student.params = dict(weights)
        with torch.no_grad():
            theirs = self._run(self.teacher, ids, [v for _, v in self.pairs])[1]
            own = self._run(self.student, ids, [v for v, _ in self.pairs])[1]
        self.pairs = [pair for pair, a, b in zip(self.pairs, own, theirs) if float(_off(a, b)) < limit]

    @staticmethod
    def _run(executor: object, ids: np.ndarray, values: Sequence[Value]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        from ingot.backends.torch.executor import Executor

        assert isinstance(executor, Executor)
        seen: dict[Value, torch.Tensor] = {}
        chosen = set(values)

        def observe(value: Value, tensor: torch.Tensor) -> None:
            if value in chosen:
                seen[value] = tensor

        logits = executor.run(inputs_for(executor.module, ids, all_logits=True), observe=observe if chosen else None)[0]
        return logits, [seen[v] for v in values]


def divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(softmax(wanted) || softmax(logits)), the mean over tokens in nats.

    Written with few passes over the vocabulary: E_p[wanted - logits], less the difference of the log-sum-exps.
    """
    p = wanted.softmax(-1)
    apart = wanted.logsumexp(-1) - logits.logsumexp(-1)
    return ((p * wanted).sum(-1) - (p * logits).sum(-1) - apart).mean()


def _off(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b).square().sum(-1) / b.square().sum(-1).clamp_min(1e-12)).mean()
