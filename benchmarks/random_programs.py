"""Random modules under random pipelines: whatever was promised must hold, for thousands of programs.

    python benchmarks/random_programs.py --count 10000 [--seed 1] [--seconds 300] [--json benchmarks/results/random_programs.json]

What stands in the JSON file is not done again: a run that ended early goes on where it was.

A program is a module (a random graph, or a decoder as it comes before or after recognition) and a legal pipeline. Checked:
the module verifies after every pass and at the end comes back from its text; every pass keeps its contract; clean-up finds
nothing to do in its own result; torch in double precision computes what the interpreter does, and, for a share of the
programs, onnxruntime within single precision. The same seed gives the same programs. A mismatch is shrunk and written to
DIR/KIND.ir: the module, with its pipeline and what went wrong above it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from ingot.errors import IngotError, PassError
from ingot.ir import interpret
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight, UnknownWeight
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup.clean import STAGES, Clean
from ingot.passes.pipeline import parse_pipeline
from ingot.testing import assert_contract, copy_module, decoders, difference, graphs, inputs_for, pipelines

ROOT = Path(__file__).parents[1]
BLOCK = 50
"""Programs drawn from one seed, by one process."""
KINDS: dict[str, Callable[[], st.SearchStrategy[Module]]] = {
    "graph": graphs, "decoder": decoders, "written-out": lambda: decoders(raw=True)}
TURNS = ("graph", "graph", "decoder", "written-out")
"""Kinds in the order of blocks: a decoder takes ten times as long as a graph."""
CLEANING = (Clean.name, *(p.name for p in STAGES))
SINGLE = {"bf16": 0.3, "f16": 0.05, "f32": 2e-5}
"""How far onnxruntime may be, of the greatest magnitude, by the narrowest float in the module: every op rounds once."""
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
INT8_ROWS = 0.05
"""The same where it multiplies by quantised weights: it rounds the other factor to int8."""


class Mismatch(AssertionError):
    """A promise that was broken; `kind` is the same for the same mistake."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind


@dataclass
class Block:
    """What one block of programs came to."""

    programs: Counter[str] = field(default_factory=Counter)
    """By kind of module."""
    passes: Counter[str] = field(default_factory=Counter)
    """By name: those that ran and kept what they promise."""
    checks: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    """Mismatches that had been found before, by kind."""
    found: dict[str, str] = field(default_factory=dict)
    """A new mismatch, by kind: the shrunk program as text."""


@dataclass
class Record:
    """What a run came to so far. blocks: how many were done, so that the next one begins with that index. fixed: mismatches by
    kind whose shrunk program goes right by now."""

    seed: int
    blocks: int = 0
    total: Block = field(default_factory=Block)
    fixed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path | None, seed: int) -> Record:
        """What a run of this seed left; an empty one where there is none."""
        said = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
        if said.get("seed") != seed:
            return cls(seed)
        block = Block(Counter(said["by_kind"]), Counter(said["passes"]), Counter(said["checks"]), Counter(said["mismatches"]),
                      said["shrunk"])
        record = cls(seed, said["blocks"], block, Counter(said["fixed"]))
        for kind in [kind for kind, text in block.found.items() if goes_right(text)]:
            del block.found[kind]
            record.fixed[kind] += block.known.pop(kind)
        return record

    def add(self, parts: Sequence[Block]) -> dict[str, str]:
        """Take in further blocks. Returns the mismatches of new kinds."""
        new: dict[str, str] = {}
        for part in parts:
            self.blocks += 1
            self.total.programs += part.programs
            self.total.passes += part.passes
            self.total.checks += part.checks
            self.total.known += part.known
            for kind, text in part.found.items():
                self.total.known[kind] += 1
                if kind not in self.total.found:
                    new[kind] = self.total.found[kind] = text
        return new

    def to_json(self) -> dict[str, Any]:
        total = self.total
        return {"programs": total.programs.total(), "seed": self.seed, "blocks": self.blocks, "by_kind": dict(total.programs),
                "passes": dict(total.passes.most_common()), "checks": dict(sorted(total.checks.items())),
                "mismatches": dict(total.known), "shrunk": total.found,
                "fixed": dict(self.fixed)}


def goes_right(text: str) -> bool:
    """Whether a program as it is written down, below its `# run:` line, passes all checks."""
    pipeline = next(line.removeprefix("# run: ") for line in text.split("\n") if line.startswith("# run: "))
    try:
        for seed in range(4):
            check_program(parse_module(text), parse_pipeline(pipeline), seed=seed)
    except (Mismatch, IngotError):
        return False
    return True


def run_block(index: int, seed: int, kind: str, known: frozenset[str], share: float) -> Block:
    """Draws and checks BLOCK programs; stops at the first mismatch of a kind that is not `known`, shrunk."""
    import torch

    torch.set_num_threads(1)
    block = Block()
    shown = ""

    @hypothesis.seed(seed * 1_000_003 + index)
    @settings(max_examples=BLOCK, deadline=None, database=None, phases=(Phase.generate, Phase.shrink), print_blob=False,
              report_multiple_bugs=False, suppress_health_check=_SLOW)
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal shown
        module = data.draw(KINDS[kind]())
        pipeline = data.draw(pipelines(module, calibrated=kind != "graph"))
        number = data.draw(st.integers(0, 99))
        tally: Counter[str] = Counter()
        ran: Counter[str] = Counter()
        try:
            check_program(module, pipeline, seed=number, share=share, tally=tally, ran=ran)
        except Mismatch as error:
            if error.kind in known:
                block.known[error.kind] += not shown
                return
            reason = "".join(f"# {line}\n" for line in str(error).split("\n--- before")[0].split("\n")[:12])
            shown = f"{reason}# run: {','.join(map(str, pipeline))}\n{print_module(module)}"
            raise
        if not shown:
            block.programs[kind] += 1
            block.checks.update(tally)
            block.passes.update(ran)

    try:
        check()
    except Mismatch as error:
        block.found[error.kind] = shown
    return block


def check_program(module: Module, pipeline: Sequence[Pass], *, seed: int = 0, share: float = 1.0,
                  tally: Counter[str] | None = None, ran: Counter[str] | None = None) -> None:
    """All checks of one program, with onnxruntime in `share` of the cases. Raises Mismatch.

    tally: counts the checks. ran: counts the passes that did not refuse.
    """
    tally, ran = Counter() if tally is None else tally, Counter() if ran is None else ran
    calibration = _calibration(module)
    for p in pipeline:
        with _as_mismatch(p.name):
            try:
                after = assert_contract(p, module, seed=seed, calibration=calibration)
            except PassError:  # a pass may refuse a module
                tally["refused"] += 1
                continue
        tally[f"{p.contract} contract"] += 1
        ran[p.name] += 1
        if p.name in CLEANING:
            _idempotent(p, after)
            tally["idempotence"] += 1
        module = after
    _well_formed(module)
    tally["text"] += 1
    if any(op.name == "round" for op in module.ops):
        return  # backends sum in other orders, and what lies on the edge between two integers may fall either way
    rng = np.random.default_rng(seed)
    inputs = list(inputs_for(module, rng).values())
    module = _stored(module)
    wanted = interpret.run(module, inputs)
    _torch(module, inputs, wanted)
    tally["torch"] += 1
    if rng.random() < share:
        _onnxruntime(module, inputs, wanted, opset_only=rng.random() < 0.5)
        tally["onnxruntime"] += 1


@contextmanager
def _as_mismatch(kind: str) -> Iterator[None]:
    """A broken contract, and any error that is not a refusal, as a Mismatch."""
    try:
        yield
    except (Mismatch, PassError):
        raise
    except Exception as error:
        raise Mismatch(f"{kind} {type(error).__name__}", str(error)) from error


def _well_formed(module: Module) -> None:
    twin = copy_module(module)
    for const in twin.consts.values():
        if const.type.size != 1:  # parsing numbers would take most of the time
            const.weight = UnknownWeight(const.type, "unknown()")
    with _as_mismatch("text"):
        verify(module)
        text = print_module(twin)
        again = print_module(parse_module(text))
    if again != text:
        raise Mismatch("text", f"comes back as\n{again}")


def _idempotent(p: Pass, module: Module) -> None:
    twin = copy_module(module)
    with _as_mismatch(f"{p.name} again"):
        p.run(twin, Context())
    before, after = print_module(module), print_module(twin)
    if after != before:
        raise Mismatch(f"{p.name} again", f"finds more to do in its own result, which becomes\n{after}")


def _stored(module: Module) -> Module:
    """The module with every weight rounded to the type it is stored in: a derived one is float64 to the interpreter alone."""
    twin = copy_module(module)
    for const in twin.consts.values():
        const.weight = ArrayWeight(const.weight.materialize(), dtype=const.type.dtype)
    return twin


def _torch(module: Module, inputs: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    import torch

    from ingot.backends import torch as backend
    from ingot.backends.torch.tensors import to_array

    with _as_mismatch("torch"):
        got = [to_array(t) for t in backend.run(module, inputs, dtype=torch.float64)]
    _compare("torch", got, wanted, limit=1e-9)


def _onnxruntime(module: Module, inputs: list[np.ndarray], wanted: list[np.ndarray], *, opset_only: bool) -> None:
    from ingot.backends import onnx as backend

    kind = "onnxruntime, standard operators" if opset_only else "onnxruntime"
    with _as_mismatch(kind):
        got = backend.run(module, inputs, opset_only=opset_only)
    types = {v.type.dtype.name for op in module.ops for v in (*op.operands, *op.results)} | {
        p.type.dtype.name for p in module.main.params}
    limit = next((limit for name, limit in SINGLE.items() if name in types), SINGLE["f32"])
    if any(op.name == "dequantize" for op in module.ops):
        limit = max(limit, INT8_ROWS)
    _compare(kind, got, wanted, limit=limit)


def _compare(kind: str, got: list[np.ndarray], wanted: list[np.ndarray], *, limit: float) -> None:
    for index, (mine, ours) in enumerate(zip(got, wanted, strict=True)):
        reason = difference(np.asarray(mine, ours.dtype), ours, rtol=limit)
        if reason:
            raise Mismatch(kind, f"result {index}: {reason}")


def _calibration(module: Module) -> list[np.ndarray] | None:
    """Token ids for a decoder."""
    if module.meta.get("kind") != "decoder":
        return None
    return [np.random.default_rng(0).integers(0, int(module.meta["vocab"]), (1, 8))]


@click.command()
@click.option("--count", default=1000, show_default=True, help="Programs to check, those in the JSON file included.")
@click.option("--seconds", type=float, help="Begin no more programs after so long.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Processes.")
@click.option("--share", default=0.2, show_default=True, help="Part of the programs that run in onnxruntime as well.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Kinds of modules [default: all].")
@click.option("--found", type=click.Path(path_type=Path), default=ROOT / ".cache/random_programs", help="Where mismatches go.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Results; a run of the same seed in it goes on.")
def main(count: int, seconds: float | None, seed: int, workers: int, share: float, kinds: tuple[str, ...], found: Path,
         out: Path | None) -> None:
    start = time.perf_counter()
    record = Record.read(out, seed)
    chosen = kinds or TURNS
    found.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        while record.total.programs.total() < count and (seconds is None or time.perf_counter() - start < seconds):
            known = frozenset(record.total.found)
            wave = [pool.submit(run_block, i, seed, chosen[i % len(chosen)], known, share)
                    for i in range(record.blocks, record.blocks + workers)]
            for kind, text in record.add([waiting.result() for waiting in wave]).items():
                click.echo(f"\n{text}", err=True)
                (found / f"{re.sub(r'[^a-zA-Z0-9]+', '-', kind)}.ir").write_text(text, encoding="utf-8")
            if out is not None:
                out.write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
            if sys.stderr.isatty():
                click.echo(f"\r{record.total.programs.total()} of {count}", nl=False, err=True)
    click.echo(json.dumps({key: value for key, value in record.to_json().items() if key != "shrunk"}, indent=1))
    sys.exit(1 if record.total.found else 0)


if __name__ == "__main__":
    main()
