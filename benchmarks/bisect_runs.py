"""How many runs `ingot bisect` takes to find a planted mistake, against the least that a binary search can do.

    python benchmarks/bisect_runs.py [MODEL] [--places 5] [--json benchmarks/results/bisect.json]

A pass that reverses the features of one value is put at places all along a pipeline, each time at another depth of the model.
Without MODEL the model is a decoder of four layers with its operators written out. Reported: runs over the pipeline and over
the values of the guilty pass, beside log2 of both (one more run shows first that the whole goes wrong), and whether pass and
value are the planted ones.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ingot.bisection import bisect
from ingot.compiler import load
from ingot.ir.module import Builder, Module
from ingot.ir.op import Op
from ingot.ir.ops.layout import Flip
from ingot.passes.base import Context, Pass, option
from ingot.passes.cleanup.clean import STAGES
from ingot.passes.pipeline import parse_pipeline

CLEAN = ",".join(map(str, STAGES))
PIPELINE = f"{CLEAN},recognize,{CLEAN},fuse{{norm}},fuse{{qkv}},fuse{{mlp}},take-logits,insert-kv-cache,{CLEAN}"
DEPTH = (math.sqrt(5) - 1) / 2
"""Between the depths of two places after each other, modulo 1: they spread over the model evenly."""


@dataclass(frozen=True)
class Reverse(Pass):
    """The planted mistake: what one op makes comes out with its last axis reversed."""

    name = "planted-reverse"
    contract = "exact"

    depth: float = option(0.5, doc="how far into the model, 0 to 1")

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        places = [op for op in func.ops if _features(op)]
        op = places[min(int(self.depth * len(places)), len(places) - 1)]
        b = Builder(func, before=op)
        func.replace(op.result, b(Flip(b(op.clone()), (op.result.type.rank - 1,)), "reversed"))
        func.drop_dead()
        return 1


def _features(op: Op) -> bool:
    """Whether an op makes one value of floats [batch, ..., features]."""
    types = [r.type for r in op.results]
    return len(types) == 1 and types[0].dtype.is_float and types[0].rank >= 3 and str(types[0].dims[0]) == "B" and (
        isinstance(width := types[0].dims[-1], int) and width > 1)


def searched(module: Module, pipeline: list[Pass], place: int, depth: float) -> dict[str, Any]:
    """What bisect takes and finds when the mistake is pass number `place` (from 1)."""
    wrong = Reverse(depth)
    start = time.perf_counter()
    found = bisect(module, [*pipeline[:place - 1], wrong, *pipeline[place - 1:]])
    g = found.guilty
    record: dict[str, Any] = {"place": place, "depth": round(depth, 3), "passes": found.passes, "runs": found.runs,
                              "log2_passes": round(math.log2(found.passes), 2), "error": found.error}
    if g is not None:
        record |= {"values": g.cuts, "value_runs": g.cut_runs, "log2_values": round(math.log2(g.cuts), 2), "value": g.value,
                   "right_pass": (g.stage, g.place) == (str(wrong), place), "right_value": "= flip(" in g.op_after}
    return record | {"seconds": round(time.perf_counter() - start, 1)}


def _written_out() -> Module:
    from ingot.testing import Decoder

    return Decoder(layers=4, width=8, kv_heads=2, group=2, vocab=24, positions="rope", place="pre", final_norm=True, mlp="gated",
                   activation="silu", tied=False).module(raw=True)


@click.command()
@click.argument("model", required=False)
@click.option("--passes", default=PIPELINE, help="The pipeline [default: a decoder's, clean-up pass by pass].")
@click.option("--places", type=click.IntRange(2), help="Places tried, evenly over the pipeline [default: all].")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Results; those of another model in it are kept.")
def main(model: str | None, passes: str, places: int | None, out: Path | None) -> None:
    from ingot.report import table

    module, name = (load(model), Path(model).name) if model else (_written_out(), "decoder")
    pipeline = parse_pipeline(passes)
    ends = len(pipeline) + 1
    tried = range(1, ends + 1) if places is None else [1 + round(i * (ends - 1) / (places - 1)) for i in range(places)]
    records = []
    for place in tried:
        records.append(searched(module, pipeline, place, place * DEPTH % 1))
        click.echo(f"place {place}: {records[-1]}", err=True)
    guilty = [r for r in records if "values" in r]
    click.echo(table(["place", "runs", "log2", "value runs", "log2", "values", "value", "right"], [
        [r["place"], r["runs"], r["log2_passes"], r["value_runs"], r["log2_values"], r["values"], r["value"].split(":")[0],
         r["right_pass"] and r["right_value"]] for r in guilty]))
    right = sum(r["right_pass"] and r["right_value"] for r in guilty)
    click.echo(f"{right} of {len(records)} found: pass and value")
    if out is not None:
        known = json.loads(out.read_text()) if out.exists() else {}
        known[name] = {"pipeline": passes, "places": len(records), "found": right, "searches": records}
        out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
