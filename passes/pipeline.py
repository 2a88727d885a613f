"""Pipelines: their text, the order rules, and the driver that runs passes and writes receipts.

`canonicalize,fuse{norm mlp},quantize{format=int4 group=32}` parses to pass objects and prints back. Inside the braces
options are separated by spaces; a bare word sets a boolean option to true.
"""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ingot.errors import NothingMatched, PassError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.text.parser import split_pipeline
from ingot.ir.verify import verify
from ingot.passes.base import PASSES, Context, Pass, make_pass
from ingot.passes.contracts.contract import Check, check_contract
from ingot.passes.contracts.snapshot import Snapshot
from ingot.passes.plugins import load_plugins

_STAGE = re.compile(r"([a-z][\w-]*)(?:\{([^{}]*)\})?$")


@dataclass
class Receipt:
    """What one pass did. bytes: of all weights as they would be stored. memory: peak resident bytes of the process.

    details: the pass's own entries; under `rules`, how often each rewriting rule applied; under `sites`, what was measured
    at each site, as `{"name": ..., "error": ..., "bytes": ...}` (numbers, either may be absent).
    """

    stage: str
    sites: int
    changed: bool
    ops_before: int
    ops_after: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    seconds: float
    memory: int
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_pipeline(text: str) -> list[Pass]:
    """The passes a pipeline text names. Raises PassError for an unknown pass or option, or broken text."""
    import ingot.passes.all  # noqa: F401  (registers the passes)

    out: list[Pass] = []
    for stage in split_pipeline(text):
        found = _STAGE.match(stage)
        if found is None:
            raise PassError(f"cannot read pipeline stage `{stage}`", hint="write it as name or name{option=value option=value}")
        given: dict[str, Any] = {}
        for item in (found[2] or "").split():
            key, eq, value = item.partition("=")
            given[key] = value if eq else "true"
        if found[1] not in PASSES:
            load_plugins()
        out.append(make_pass(found[1], given))
    return out


def check_order(passes: Sequence[Pass], module: Module, *, has_calibration: bool = False, has_teacher: bool = False) -> set[str]:
    """Refuse a pipeline whose order cannot work, or whose passes name files that are not what they should be.

    Returns the facts that will hold of the module after it (`Pass.establishes`).
    Raises PassError with one sentence (for files, what `Pass.look` raises), before any work starts.
    """
    facts = {str(f): "what was done to this module before" for f in str(module.meta.get("facts", "")).split()}
    loser, edit = None, None
    for p in passes:
        p.look()
        for fact, reason in p.not_after.items():
            if fact in facts:
                raise PassError(f"{p.name} cannot follow {facts[fact]}: {reason}")
        if "calibration" in p.requires() and not has_calibration:
            raise PassError(f"{p.name} needs calibration text", hint="give a file with --calib")
        if "teacher" in p.requires() and not has_teacher:
            if loser is None:
                raise PassError(f"{p.name} makes good what passes before it cost, and none of them costs anything",
                                hint=f"put it behind one that does, in the same pipeline: prune,{p.name}")
            if edit is not None:
                raise PassError(f"{p.name} would take back {edit.name}, which stands behind {loser.name}",
                                hint=f"put {edit.name} before {loser.name}")
        edit = p if p.wanted and loser is not None and "teacher" not in p.requires() else edit
        loser = p if p.loses and loser is None else loser
        for fact in p.establishes:
            facts[fact] = p.name
    return set(facts)


def run_pipeline(module: Module, passes: Sequence[Pass], ctx: Context | None = None, *, on_stage: Any = None,
                 check: Check | None = None) -> list[Receipt]:
    """Run passes in order, verifying after each; one receipt per pass.

    on_stage: called with (index, pass, module, receipt) after each. check: also check that each pass keeps its contract.
    Raises PassError when a pass that should change something matched nothing, ContractError for a broken contract.
    """
    ctx = ctx or Context()
    check_order(passes, module, has_calibration=ctx.calibration is not None, has_teacher=ctx.teacher is not None)
    receipts: list[Receipt] = []
    for index, p in enumerate(passes):
        keep_teacher(module, p, passes[index + 1:], ctx)
        receipt = run_pass(module, p, ctx, check=check)
        receipts.append(receipt)
        if on_stage is not None:
            on_stage(index, p, module, receipt)
    return receipts


def keep_teacher(module: Module, p: Pass, later: Sequence[Pass], ctx: Context) -> None:
    """To be called before each pass of a pipeline: where it is the first to lose something, and one of the `later` ones makes
    such losses good, the module as it stands is the teacher."""
    if p.loses and ctx.teacher is None and any("teacher" in each.requires() for each in later):
        ctx.teacher = copy_module(module)


def run_pass(module: Module, p: Pass, ctx: Context, *, check: Check | None = None) -> Receipt:
    """Run one pass and verify what it left; with `check`, check its contract.

    Raises PassError when nothing matched and that is not normal for the pass, ContractError when it broke its contract.
    """
    before = measure(module)
    epoch, start = module.epoch, time.perf_counter()
    ctx.details = {}
    ctx.applied = Counter()
    ctx.stage = str(p)
    done = Snapshot(module) if check is not None else None
    try:
        sites = p.run(module, ctx)
    finally:
        if done is not None:
            done.close()
    seconds = time.perf_counter() - start
    if not sites and not p.may_match_nothing:
        raise NothingMatched(str(p))
    verify(module)
    if done is not None and check is not None:
        ctx.step(0, 1, f"check {p.name}")
        ctx.details.update(check_contract(p, done, ctx, check))
    facts = str(module.meta.get("facts", "")).split()
    if new := [f for f in p.establishes if f not in facts]:
        module.meta["facts"] = " ".join(facts + new)
    module.history.append(str(p))
    after = measure(module)
    if ctx.source and "calibration" in p.requires():
        tokens = [int(np.size(ids)) for ids in ctx.calibration]
        ctx.details["calibration"] = {"text": ctx.source, "tokens": sum(tokens), "sequences": len(tokens)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    details = dict(ctx.details) | ({"rules": dict(ctx.applied)} if ctx.applied else {})
    return Receipt(str(p), sites, module.epoch != epoch, before[0], after[0], before[1], after[1], before[2], after[2],
                   seconds, memory, details)


def measure(module: Module) -> tuple[int, int, int]:
    """(ops, parameters, bytes) of a module; parameters count elements of floating and code tensors, scales left out."""
    consts = module.consts.values()
    return (sum(len(f.ops) for f in module.funcs.values()),
            sum(c.type.size for c in consts if isinstance(c.type.size, int) and c.type.dtype.name not in ("i64", "bool")
                and not any(isinstance(user, Dequantize) and user.packed is not c for user in c.users)),
            sum(c.weight.nbytes for c in consts))
