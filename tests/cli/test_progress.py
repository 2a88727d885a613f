"""The progress bar: what a terminal shows while a pass works, and that nothing else gets it."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from ingot.passes.base import Context
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.progress import progress_bar
from ingot.testing import Decoder
from tests.passes.test_rotate import LLAMA


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("compile") as step:
        step(3, 7, f"{'x' * 60}layers.2.mlp.down_proj.weight lost 0.012")
    drawn = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "3/7" in drawn
    assert "layers.2.mlp.down_proj.weight lost 0.012" in drawn


def test_a_file_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("compile") as step:
        step(1, 2, "a pass")
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_calibration_tells_the_loss_of_every_weight() -> None:
    told: list[tuple[int, int, str]] = []
    module = Decoder(**LLAMA | {"tied": False}).module()  # type: ignore[arg-type]
    batches = [np.random.default_rng(0).integers(0, 24, (2, 16))]
    [receipt] = run_pipeline(module, parse_pipeline("quantize{format=int4 group=16 method=gptq}"),
                             Context(calibration=batches, progress=lambda *step: told.append(step)))
    losses = {what.split(" lost ")[0]: float(what.split(" lost ")[1]) for _, _, what in told if " lost " in what}
    assert losses == {site["name"]: pytest.approx(site["error"], rel=0.05) for site in receipt.details["sites"]}
    assert told[-1][:2] == (receipt.sites, receipt.sites)
