"""Which channels stand and fall together: ingot's groups, from the axis maps of a graph, beside Torch-Pruning's.

    python benchmarks/group_discovery.py --rival PYTHON [--only NAME ...] [--json FILE]
    python benchmarks/group_discovery.py --large phi3 --large llama [--json FILE]

PYTHON is the interpreter of an environment with torch, transformers and torch-pruning (1.6.1). The models are tiny and random
(`rivals/pruning/models.py`). A unit is the set of all positions of all axes of all parameters that one channel or head takes
with it; two groups agree when their sets of units are equal. A group of theirs is "coarser" when each of its units is a union of
ours. Every group of either side is put to the test: the first unit is cut, and what the model then computes compared with the
whole one with zeros there ("equal"; "runs" where a norm over the channels is part of it).
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rows import keep

HERE = Path(__file__).parent / "rivals/pruning"
TOLERANCE = 1e-4
TRACE = "clean,recognize,clean"
LARGE = {"phi3": ({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}, TRACE),
         "llama": ({}, f"{TRACE},fuse{{qkv mlp}}")}
"""Changes to the configuration, and the pipeline, of models of seven billion parameters."""
Unit = frozenset[tuple[str, int, int]]
"""(parameter, axis, position) of all that goes."""


def traced(name: str) -> tuple[Any, Any]:
    """The example of a name and its module."""
    sys.path.insert(0, str(HERE))
    from models import example

    from ingot.frontend.huggingface import import_model
    from ingot.frontend.modules import import_module
    from ingot.passes.pipeline import parse_pipeline, run_pipeline

    made = example(name)
    module = import_model(made.model) if hasattr(made.model, "config") else import_module(
        made.model, made.inputs, dims={key: ("B", *[None] * (x.ndim - 1)) for key, x in made.inputs.items()})
    run_pipeline(module, parse_pipeline(TRACE))
    return made, module


def units_of(group: Any, known: Mapping[str, tuple[int, ...]]) -> list[Unit]:
    """The units of a group of ours by the names of the parameters, weights that are stored the other way round turned back."""
    places: list[set[tuple[str, int, int]]] = [set() for _ in range(group.size)]
    for (const, axis), units in group.members.items():
        name = const.name
        while name not in known and "." in name:
            name, _, made_by = name.rpartition(".")
            axis = 1 - axis if made_by == "transpose" else axis
        if name in known:
            for position in np.flatnonzero(units >= 0).tolist():
                places[units[position]].add((name, axis, position))
    return [frozenset(place) for place in places]


def outcome(made: Any, module: Any, coupling: Any, group: Any) -> str:
    """What becomes of a module when the first unit of each block of a group is cut."""
    from ingot.backends.torch.executor import Executor
    from ingot.ir.copy import copied
    from ingot.ir.verify import verify
    from ingot.ir.weights import ArrayWeight
    from ingot.passes.pruning.coupling import Coupling
    from ingot.passes.pruning.cut import cut
    from ingot.passes.pruning.groups import groups

    given = {str(p.hint): x for p, x in zip(module.main.params, inputs(made, module), strict=True)}
    smaller = copied(module)[0]
    theirs = Coupling(smaller.main)
    twin = next(g for g in groups(theirs) if g.name == group.name and g.kind == group.kind and g.atom.size == group.atom.size
                and [(c.name, a) for c, a in g.members] == [(c.name, a) for c, a in group.members])
    mask = np.ones((group.blocks, group.size // group.blocks), bool)
    mask[:, 0] = False
    cut(smaller.main, theirs, {twin: mask.reshape(-1)}, made_by="prune")
    verify(smaller)
    whole = copied(module)[0]
    for (const, axis), units in group.members.items():
        array = np.moveaxis(const.weight.materialize().copy(), axis, 0)
        array[(units >= 0) & ~mask.reshape(-1)[units]] = 0
        whole.consts[const.name].weight = ArrayWeight(np.moveaxis(array, 0, axis))
    result, wanted = (Executor(m).run(given)[0].numpy() for m in (smaller, whole))
    if group.atom in coupling.role("width"):
        return "runs" if np.isfinite(result).all() and result.shape == wanted.shape else "differs"
    apart = float(np.abs(result - wanted).max() / np.abs(wanted).max())
    return "equal" if apart < TOLERANCE else f"differs: by {apart:.2g} of the largest"


def inputs(made: Any, module: Any) -> Iterable[np.ndarray]:
    """The example inputs of a model in the order of a module's parameters."""
    ids = made.inputs.get("input_ids")
    for param in module.main.params:
        match str(param.hint):
            case "ids":
                yield ids.numpy()
            case "pos":
                yield np.tile(np.arange(ids.shape[1]), (len(ids), 1))
            case "mask":
                yield np.ones(ids.shape, np.int64)
            case "types":
                yield np.zeros(ids.shape, np.int64)
            case _:
                yield made.inputs["pixel_values"].numpy()


def ours(name: str) -> list[dict[str, Any]]:
    """Name, kind, units and the outcome of a cut of every group of ours."""
    from ingot.passes.pruning.coupling import Coupling
    from ingot.passes.pruning.groups import groups

    made, module = traced(name)
    names = [key for key, _ in (*made.model.named_parameters(), *made.model.named_buffers())]
    known = {key: tuple(made.model.state_dict()[key].shape) for key in names if key in made.model.state_dict()}
    coupling = Coupling(module.main)
    return [{"root": group.name, "kind": group.kind, "units": units_of(group, known),
             "cut": outcome(made, module, coupling, group)} for group in groups(coupling)]


def unit(listed: Iterable[tuple[str, int, list[int]]]) -> Unit:
    return frozenset((name, axis, at) for name, axis, positions in listed for at in positions)


def compared(name: str, rival: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a model: how many groups agree, and what does not, by name."""
    mine = ours(name)
    sets = {frozenset(group["units"]): f"{group['kind']} of {group['root']} ({len(group['units'])})" for group in mine}
    every = [u for group in mine for u in group["units"]]
    met: set[str] = set()
    coarser: list[str] = []
    other: list[str] = []
    for group in rival["groups"]:
        units = frozenset(unit(u) for u in group["units"])
        title = f"{group['kind']} of {group['root']} ({len(units)}; cut: {group['cut']})"
        if units in sets:
            met.add(sets[units])
        elif all(frozenset().union(*(v for v in every if v <= u)) == u for u in units):
            coarser.append(title)
        else:
            other.append(title)
    good = ("equal", "runs")
    return {"model": name, "ours": len(mine), "ours_right": sum(g["cut"] in good for g in mine), "theirs": len(rival["groups"]),
            "theirs_right": sum(g["cut"] in good for g in rival["groups"]), "agree": len(met), "coarser": coarser, "other": other,
            "ours_alone": [title for title in sets.values() if title not in met],
            "ours_wrong": [f"{g['kind']} of {g['root']}: {g['cut']}" for g in mine if g["cut"] not in good],
            "their_error": rival["error"]}


def seven_billion(name: str) -> dict[str, Any]:
    """Processor seconds to find the groups of a graph of Llama-7B's shape with 8 key heads, fused in the checkpoint or by us."""
    from llama_7b import CONFIG

    from ingot.compiler import load
    from ingot.passes.pipeline import parse_pipeline, run_pipeline
    from ingot.passes.pruning.coupling import Coupling
    from ingot.passes.pruning.groups import groups

    changes, pipeline = LARGE[name]
    with tempfile.TemporaryDirectory() as folder:
        shape = CONFIG | {"num_key_value_heads": 8, "pad_token_id": 0} | changes
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        module = load(Path(folder), weights=False)
    run_pipeline(module, parse_pipeline(pipeline))
    start = time.process_time()
    every = groups(Coupling(module.main))
    seconds = time.process_time() - start
    kinds = {kind: sum(group.kind == kind for group in every) for kind in dict.fromkeys(group.kind for group in every)}
    return {"ops": len(module.main.ops), "groups": kinds, "seconds": round(seconds, 2)}


@click.command()
@click.option("--rival", type=click.Path(exists=True), help="An interpreter that imports torch_pruning.")
@click.option("--only", multiple=True, help="Models by name.")
@click.option("--large", type=click.Choice(list(LARGE)), multiple=True, help="Time ours on a graph of seven billion parameters.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by name; those of other models are kept.")
def main(rival: str | None, only: tuple[str, ...], large: tuple[str, ...], out: Path | None) -> None:
    sys.path.insert(0, str(HERE))
    from models import NAMES

    for name in large:
        record = seven_billion(name)
        keep(out, f"7B {name}", record)
        click.echo(f"{name}: {record['ops']:,} ops, {record['groups']} in {record['seconds']} s")
    if rival is not None:
        click.echo(f"{'model':18}  ours right theirs right agree  coarser / other / ours alone")
        for name in only or NAMES:
            worker = [rival, str(HERE / "torch_pruning_worker.py"), name]
            run = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True)
            record = compared(name, json.loads(run.stdout.splitlines()[-1]))
            keep(out, name, record)
            click.echo(f"{name:18} {record['ours']:5} {record['ours_right']:5} {record['theirs']:6} {record['theirs_right']:5} "
                       f"{record['agree']:5}  {len(record['coarser'])} / {len(record['other'])} / {len(record['ours_alone'])}"
                       + (f"  {record['their_error']}" if record["their_error"] else ""))


if __name__ == "__main__":
    main()
