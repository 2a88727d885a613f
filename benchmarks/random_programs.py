"""Random modules under random pipelines: whatever was promised must hold, for thousands of programs.

    python benchmarks/random_programs.py --count 10000 [--seed 1] [--workers 1] [--json benchmarks/results/random_programs.json]

A program is a module (a random graph, or a decoder as it comes before or after recognition) and a legal pipeline. Checked:
the module verifies after every pass and comes back from its text; every pass keeps its contract; clean-up finds nothing to
do in its own result; torch in double precision computes what the interpreter does, and, for a share of the programs,
onnxruntime within single precision. The same seed gives the same programs. A mismatch is shrunk and written to
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

from ingot.errors import PassError
from ingot.ir import interpret
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight, UnknownWeight
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup.clean import STAGES, Clean
from ingot.testing import assert_contract, copy_module, decoders, difference, graphs, inputs_for, pipelines

ROOT = Path(__file__).parents[1]
BLOCK = 50
"""Programs drawn from one seed, by one process."""
KINDS: dict[str, Callable[[], st.SearchStrategy[Module]]] = {
    "graph": graphs, "decoder": decoders, "written-out": lambda: decoders(raw=True)}
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
    checks: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    """Mismatches that had been found before, by kind."""
    found: dict[str, str] = field(default_factory=dict)
    """A new mismatch, by kind: the shrunk program as text."""


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
        text = print_module(module)
        try:
            check_program(module, pipeline, seed=number, share=share, tally=tally)
        except Mismatch as error:
            if error.kind in known:
                block.known[error.kind] += not shown
                return
            reason = "".join(f"# {line}\n" for line in str(error).split("\n--- before")[0].split("\n")[:12])
            shown = f"{reason}# run: {','.join(map(str, pipeline))}\n{text}"
            raise
        if not shown:
            block.programs[kind] += 1
            block.checks.update(tally)

    try:
        check()
    except Mismatch as error:
        block.found[error.kind] = shown
    return block


def check_program(module: Module, pipeline: Sequence[Pass], *, seed: int = 0, share: float = 1.0,
                  tally: Counter[str] | None = None) -> None:
    """All checks of one program, with onnxruntime in `share` of the cases; counts them in `tally`. Raises Mismatch."""
    tally = Counter() if tally is None else tally
    calibration = _calibration(module)
    _well_formed(module, "drawn")
    tally["text"] += 1
    for p in pipeline:
        with _as_mismatch(p.name):
            try:
                after = assert_contract(p, module, seed=seed, calibration=calibration)
            except PassError:  # a pass may refuse a module
                tally["refused"] += 1
                continue
        tally[f"{p.contract} contract"] += 1
        if p.name in CLEANING:
            _idempotent(p, after)
            tally["idempotence"] += 1
        module = after
    _well_formed(module, "passes")
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


def _well_formed(module: Module, stage: str) -> None:
    twin = copy_module(module)
    for const in twin.consts.values():
        if const.type.size != 1:  # parsing numbers would take most of the time
            const.weight = UnknownWeight(const.type, "unknown()")
    with _as_mismatch(f"text after {stage}"):
        verify(module)
        text = print_module(twin)
        again = print_module(parse_module(text))
    if again != text:
        raise Mismatch(f"text after {stage}", f"comes back as\n{again}")


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
@click.option("--count", default=1000, show_default=True, help="Programs to check.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Processes.")
@click.option("--share", default=0.2, show_default=True, help="Part of the programs that run in onnxruntime as well.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Kinds of modules [default: all].")
@click.option("--found", type=click.Path(path_type=Path), default=ROOT / ".cache/random_programs", help="Where mismatches go.")
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(count: int, seed: int, workers: int, share: float, kinds: tuple[str, ...], found: Path, out: Path | None) -> None:
    start, index = time.perf_counter(), 0
    total, record = Block(), dict[str, Any]()
    chosen = list(kinds or KINDS)
    found.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        while total.programs.total() < count:
            known = frozenset(total.found)
            wave = [pool.submit(run_block, i, seed, chosen[i % len(chosen)], known, share) for i in range(index, index + workers)]
            index += workers
            for part in (waiting.result() for waiting in wave):
                total.programs += part.programs
                total.checks += part.checks
                total.known += part.known
                for kind, text in part.found.items():
                    if kind not in total.found:
                        click.echo(f"\n{text}", err=True)
                        (found / f"{re.sub(r'[^a-zA-Z0-9]+', '-', kind)}.ir").write_text(text, encoding="utf-8")
                    total.found[kind] = text
                    total.known[kind] += 1
            record = {"programs": total.programs.total(), "seed": seed, "by_kind": dict(total.programs),
                      "checks": dict(sorted(total.checks.items())), "mismatches": dict(total.known),
                      "shrunk": total.found, "seconds": round(time.perf_counter() - start, 1)}
            if out is not None:
                out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if sys.stderr.isatty():
                click.echo(f"\r{record['programs']} of {count}", nl=False, err=True)
    click.echo(json.dumps({key: value for key, value in record.items() if key != "shrunk"}, indent=1))
    sys.exit(1 if total.found else 0)


if __name__ == "__main__":
    main()
