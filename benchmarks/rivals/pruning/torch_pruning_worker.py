"""Torch-Pruning's groups: `torch_pruning_worker.py`, run in an environment with torch, transformers and torch-pruning.

Prints one JSON line per model of `models.NAMES`: {"model", "groups", "error"}. A group has its root layer, its kind (channels,
heads, or channels of heads), its units as lists of [parameter, axis, positions], and what became of the model when the first unit
was cut: "equal" to the model with zeros there, "runs" where a norm is part of it, "differs", or the error. Units are those that
its `BasePruner` would rank and cut (`_prune`), which is told how many heads linears make; afterwards attributes that state
numbers of heads or their size are set, as its examples do by hand. As in its example for language models, those lose whole heads
alone, and a fused gate is cut in both halves.
"""

import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch_pruning as tp
from models import NAMES, Example, example
from torch import nn

Unit = list[tuple[str, int, list[int]]]
TOLERANCE = 1e-4
PATIENCE = 20
NUMBERS, SIZES = ("num_heads", "num_attention_heads"), ("head_dim", "attention_head_size")
"""Attributes of attentions: how many heads there are, and how wide they are."""


def pruner_of(made: Example) -> tp.pruner.BasePruner:
    """Its pruner of a model, told of the heads, with the output layer left alone."""
    parts = dict(made.model.named_modules())
    return tp.pruner.BasePruner(
        made.model, made.inputs, importance=tp.importance.MagnitudeImportance(), ignored_layers=[parts[made.output]],
        num_heads={parts[name]: heads for name, heads in made.heads().items()}, in_channel_groups={},
        out_channel_groups={part: 2 for name, part in parts.items() if name.endswith("gate_up_proj")}, prune_num_heads=True,
        head_pruning_ratio=0.1, prune_head_dims=made.output != "lm_head",
        output_transform=lambda out: out if isinstance(out, torch.Tensor) else out.logits)


@dataclass
class Found:
    """A group: its root layer, its kind, what is cut from the root for each unit; shared: layers that are left whole."""

    pruner: tp.pruner.BasePruner
    root: nn.Module
    cut: Callable[..., nn.Module]
    kind: str
    positions: list[list[int]]
    shared: set[nn.Module]

    def unit(self, index: int) -> list[tuple]:
        """(dependency, positions) of everything that goes with a unit."""
        group = self.pruner.DG.get_pruning_group(self.root, self.cut, self.positions[index])
        return [(dep, list(idxs)) for dep, idxs in group if dep.target.module not in self.shared]


def found(pruner: tp.pruner.BasePruner) -> Iterator[Found]:
    """Every group, as `BasePruner._prune` forms them."""
    graph = pruner.DG
    for group in graph.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types):
        attention, makers = pruner._is_atten_group(group)
        if attention:
            group = pruner._downstream_node_as_root_if_attention(group)
            if group is None:
                continue
        root, cut = group[0].dep.target.module, group[0].dep.handler
        size, blocks = len(group[0].idxs), pruner._get_channel_groups(group)
        if attention:
            heads = max(pruner.num_heads[m] for m in makers)
            width = makers[0].out_features // (pruner.num_heads[makers[0]] * (3 if len(makers) == 1 else 1))
            yield Found(pruner, root, cut, "heads", [list(range(h * width, (h + 1) * width)) for h in range(heads)],
                        {m for m in makers if pruner.num_heads[m] != heads})
            if not pruner.prune_head_dims:
                continue
        step = size // blocks
        yield Found(pruner, root, cut, "channels of heads" if attention else "channels",
                    [[i + b * step for b in range(blocks)] for i in range(step)], set())


def members(pruner: tp.pruner.BasePruner, unit: list[tuple]) -> Unit:
    """What a unit is by names of parameters: the first name of each tensor."""
    model, graph = pruner.DG.model, pruner.DG
    first: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        first.setdefault(id(tensor), name)
    places: dict[tuple[str, int], set[int]] = {}
    for dep, positions in unit:
        module, makes = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
        if isinstance(module, nn.Parameter):
            axes = {id(module): dep.target.pruning_dim % module.dim()}
        elif isinstance(module, nn.Embedding):
            axes = {id(module.weight): 1}
        elif isinstance(module, nn.Linear | nn.Conv2d):
            whole = makes or (isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1)
            axes = {id(module.weight): 0, id(module.bias): 0} if whole else {id(module.weight): 1}
        else:
            held = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
            axes = {id(tensor): 0 for tensor in held if tensor.dim()}
        if isinstance(module, nn.Conv2d) and module.groups > 1 and axes.get(id(module.weight)) == 1:
            keep = module.in_channels - len(positions)  # `prune_in_channels` keeps as many of the first ones as are left in each
            stay = sorted(set(range(module.in_channels)) - set(positions))[:keep // module.groups]
            positions = [i for i in range(module.weight.shape[1]) if i not in stay]
        for tensor, axis in axes.items():
            if tensor in first:
                places.setdefault((first[tensor], axis), set()).update(positions)
    return [(name, axis, sorted(at)) for (name, axis), at in sorted(places.items()) if at]


def zeroed(made: Example, unit: Unit) -> torch.Tensor:
    """What a model makes of its inputs with zeros in the place of a unit."""
    state = made.model.state_dict()
    for name, axis, positions in unit:
        state[name].index_fill_(axis, torch.tensor(positions), 0)
    return made.run()


def adjusted(made: Example, kind: str) -> None:
    """State the new number of heads, or their new size, where an attention keeps it."""
    for name in made.heads():
        owner = made.model.get_submodule(name.rpartition(".")[0])
        query = getattr(owner, "q_proj", getattr(owner, "query", None))
        if query is None or query.out_features == made.model.config.hidden_size:
            continue
        names, others = (NUMBERS, SIZES) if kind == "heads" else (SIZES, NUMBERS)
        other = next((getattr(owner, n) for n in others if hasattr(owner, n)), made.heads()[name])
        for attribute in names:
            if hasattr(owner, attribute):
                setattr(owner, attribute, query.out_features // other)
        if hasattr(owner, "all_head_size"):
            owner.all_head_size = query.out_features
        if hasattr(owner, "num_key_value_groups") and kind == "heads":
            owner.num_key_value_groups = query.out_features // owner.k_proj.out_features


def outcome(name: str, index: int, unit: Unit) -> str:
    """What becomes of a model when the first unit of its group `index` is cut."""
    made = example(name)
    group = next(islice(found(pruner_of(made)), index, None))
    normed = any("LayerNorm" in (kind := type(made.model.get_submodule(n.rpartition(".")[0])).__name__) or "RMSNorm" in kind
                 for n, _, _ in unit)
    try:
        for dep, positions in group.unit(0):
            if isinstance(dep.target.module, nn.Parameter):
                owner, _, key = group.pruner.DG._param_to_name[dep.target.module].rpartition(".")
                setattr(made.model.get_submodule(owner), key, dep(positions))
            else:
                dep(positions)
        adjusted(made, group.kind)
        with torch.no_grad():
            result, wanted = made.run(), zeroed(example(name), unit)
    except TimeoutError:
        raise
    except Exception as error:  # whatever it raises is what is reported
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
    if result.shape != wanted.shape:
        return f"differs: gives {list(result.shape)}, not {list(wanted.shape)}"
    if normed:
        return "runs" if torch.isfinite(result).all() else "differs: not finite"
    apart = float((result - wanted).abs().max() / wanted.abs().max())
    return "equal" if apart < TOLERANCE else f"differs: by {apart:.2g} of the largest"


def late(*_: object) -> None:
    """The clock's answer."""
    raise TimeoutError(f"no end within {PATIENCE} seconds of processor time")


def main() -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, late)
    for name in sys.argv[1:] or NAMES:
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        groups: list[dict[str, object]] = []
        error = ""
        try:
            for index, group in enumerate(found(pruner := pruner_of(example(name)))):
                units = [members(pruner, group.unit(i)) for i in range(len(group.positions))]
                groups.append({"root": pruner.DG._module2name[group.root], "kind": group.kind, "units": units,
                               "cut": outcome(name, index, units[0])})
        except Exception as raised:  # whatever it raises is what is reported
            error = f"{type(raised).__name__}: {str(raised).splitlines()[0][:200]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"model": name, "groups": groups, "error": error}), flush=True)


if __name__ == "__main__":
    main()
