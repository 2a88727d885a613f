"""merge-lora: what low-rank adapters learned becomes part of the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.ops.layout import Concat
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const, Value
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.cleanup.fold_constants import constant
from ingot.passes.lora.adapter import Adapter, check_paths, read_adapter
from ingot.passes.lora.arithmetic import MADE_BY
from ingot.passes.lora.parameters import Place, is_made, replaced
from ingot.passes.lora.plan import Plan, edited
from ingot.passes.quantization.requantise import requantise
from ingot.passes.rotation.untie import label, untie


@dataclass(frozen=True)
class MergeLora(Pass):
    """Adds adapters (PEFT directories: LoRA, rsLoRA, DoRA) to the weights they were trained for.

    The merged model computes what the base computes with the adapter beside it. The weights are those of peft's
    merge_and_unload, bit for bit in 32-bit floats, but for tied ones: where an adapter changes a token embedding and not the
    output projection that shares its numbers, or the other way round, they become two weights. (peft changes both, and with
    that the model.) Several adapters are added one after another. Weights that were joined, turned or computed from those an
    adapter names are changed there.

    Into quantised weights: the adapter is added to the numbers that the codes stand for, those it was trained on, and the
    sum is coded again in the same format, to nearest. The receipt has the error of that.
    """

    name = MADE_BY
    contract: ClassVar[Contract] = "edit"
    wanted = True

    adapter: tuple[str, ...] = option(doc="directories with adapter_config.json and adapter_model.safetensors, joined by +")
    scale: tuple[float, ...] = option((), doc="how much of each, joined by + (all of it)")

    def __post_init__(self) -> None:
        if self.scale and len(self.scale) != len(self.adapter):
            raise PassError(f"{len(self.adapter)} adapters, but {len(self.scale)} scales", hint="give one for each, or none")
        if not all(map(math.isfinite, self.scale)):
            raise PassError(f"scale={'+'.join(map(str, self.scale))}: scales are finite numbers")
        check_paths(self.adapter)

    def look(self) -> None:
        for path in self.adapter:
            read_adapter(Path(path))

    def run(self, module: Module, ctx: Context) -> int:
        plan = Plan(module)
        merged = []
        for path, factor in zip(self.adapter, self.scale or (1.0,) * len(self.adapter), strict=True):
            adapter = read_adapter(Path(path))
            adapter.check_finite()
            merged.append({"path": path, "scale": factor, "modules": len(adapter.changes),
                           "ranks": sorted({change.rank for change in adapter.changes.values()}),
                           "weights": plan.add(adapter, factor)})
            _compare_names(adapter, str(module.meta.get("source", "")))
        ctx.details["adapters"] = merged
        errors = _merge(module, plan, ctx)
        if errors:
            ctx.details["requantised"] = errors
            ctx.details["error"] = {"max": max(e["max"] for e in errors.values()),
                                    "mean": sum(e["mean"] for e in errors.values()) / len(errors)}
        for func in module.funcs.values():
            func.drop_dead()
        return len({place.value for place in plan.edits})


def _compare_names(adapter: Adapter, source: str) -> None:
    """Warns when the adapter was trained on a model of another name."""
    base = adapter.config.base_name
    if base and source and Path(base).name.lower() != source.lower():
        warnings.warn(f"{adapter.path}: trained on {base}, this model is called {source}", stacklevel=3)


def _merge(module: Module, plan: Plan, ctx: Context) -> dict[str, dict[str, float]]:
    """Carry out a plan; returns the errors of weights that were coded again, by name."""
    by_value: dict[Value, list[Place]] = {place.value: [] for place in plan.edits}
    for place in plan.parameters.places:
        by_value.get(place.value, []).append(place)
    tied = set(plan.parameters.tied)
    errors: dict[str, dict[str, float]] = {}
    for done, (value, places) in enumerate(by_value.items()):
        ctx.step(done, len(by_value), label(value))
        tables, others = ([p for p in places if p.table == kind] for kind in (True, False))
        if value in tied and plan.edits_of(tables) != plan.edits_of(others):
            ctx.details.setdefault("untied", []).append(label(value))
            warnings.warn(f"@{label(value)} is the token embedding and the output projection, and they are adapted differently: "
                          "they become two weights", stacklevel=3)
            twin = untie(module, value, plan.heads.get(value))
            errors |= _change(module, twin, others, plan)
            places = tables
        elif value in tied:
            places = tables
        errors |= _change(module, value, places, plan)
    return errors


def _change(module: Module, value: Value, places: Sequence[Place], plan: Plan) -> dict[str, dict[str, float]]:
    """Edit one weight at its places, all of which are part of it."""
    if not any(plan.edits_of(places)):
        return {}
    parts = [edited(place.leaf, edits) for place, edits in zip(places, plan.edits_of(places))]
    if isinstance(value, Const):
        weight = replaced(value.weight, {place.leaf: part for place, part in zip(places, parts)})
        if is_made(weight):
            weight = replace(weight, source=weight.origin.removesuffix(")") + f', adapted="{MADE_BY}")')
        module.set_weight(value, weight)
        return {}
    assert isinstance(value.op, Dequantize)
    name = label(value)
    rows = tuple(Const(name, part) for part in parts)
    merged = parts[0] if len(parts) == 1 else constant(Concat(rows, 0), 0, key=name, made_by=MADE_BY)
    error = requantise(module, value.op, merged, made_by=MADE_BY)
    return {} if error is None else {name: error}
