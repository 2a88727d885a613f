"""Repros on disk: a slice before and after a pass, the inputs and weights it needs, and the pass; and running the pass on it
again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import IngotError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.ir.types import TensorType
from ingot.ir.weights import ArrayWeight
from ingot.passes.base import Context, Pass
from ingot.passes.contracts.decoding import DecodeTrial
from ingot.passes.contracts.difference import EXACT
from ingot.passes.contracts.rounding import RoundingTrial
from ingot.passes.contracts.trial import ExactTrial, Finding, Inputs, Trial

RECORD = "repro.json"
BEFORE, AFTER, ARRAYS = "before.ir", "after.ir", "arrays.npz"
LARGEST = 1 << 30
"""Bytes of weights up to which a repro is written."""


@dataclass(frozen=True)
class Repro:
    """What a repro directory holds.

    stage: the pass as pipeline text. value: what goes wrong, as printed. replays: whether the pass, run on the slice
    alone, goes wrong as well; otherwise `after` shows the mistake.
    """

    stage: str
    value: str
    trial: Trial
    before: Module
    after: Module
    inputs: Inputs
    replays: bool

    def judge(self, after: Module) -> Finding | None:
        """What is wrong with `after` on the inputs kept."""
        return self.trial.judge(self.before, after, self.inputs)


def rerun(p: Pass, before: Module, trial: Trial, inputs: Inputs) -> tuple[Module, Finding | None]:
    """The module that a pass makes of a copy of `before`, and what is wrong with it. Raises IngotError when the pass fails."""
    after = copy_module(before)
    p.run(after, Context())
    return after, trial.judge(before, after, inputs)


def write_repro(parent: Path, p: Pass, repro: Repro) -> Path:
    """Write a repro into a new directory `<pass>-<n>` below `parent`, and return it.

    Raises IngotError when it cannot be written, or the weights are too large to keep.
    """
    weights = sum(c.weight.nbytes for module in (repro.before, repro.after) for c in module.consts.values())
    if weights > LARGEST:
        raise IngotError(f"its weights take {weights / 1e9:.1f} GB")
    taken = {path.name for path in parent.glob(f"{p.name}-*")} if parent.is_dir() else set()
    folder = parent / next(name for n in range(1, len(taken) + 2) if (name := f"{p.name}-{n}") not in taken)
    arrays = {f"input/{name}": _plain(array) for name, array in repro.inputs.items()}
    for side, module in (("before", repro.before), ("after", repro.after)):
        arrays |= {f"{side}/{c.name}": _plain(c.weight.materialize()) for c in module.consts.values()}
    record = {"version": 1, "pass": repro.stage, "value": repro.value, "replays": repro.replays, **_describe(repro.trial)}
    try:
        folder.mkdir(parents=True)
        (folder / BEFORE).write_text(print_module(repro.before), encoding="utf-8")
        (folder / AFTER).write_text(print_module(repro.after), encoding="utf-8")
        np.savez(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise IngotError(f"cannot write the repro: {error.strerror}", where=str(folder)) from error
    return folder


def read_repro(folder: Path) -> Repro:
    """The repro in a directory. Raises IngotError when it is none, or damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        before, after = (parse_module((folder / name).read_text(encoding="utf-8"), filename=str(folder / name))
                         for name in (BEFORE, AFTER))
        for side, module in (("before", before), ("after", after)):
            for const in module.consts.values():
                array = _typed(arrays[f"{side}/{const.name}"], const.type)
                const.weight = ArrayWeight(array, const.weight.origin, const.type.dtype)
        types = {p.hint or "": p.type for module in (before, after) for p in module.main.params}
        inputs = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
        inputs = {name: _typed(array, types[name]) if name in types else array for name, array in inputs.items()}
        if missing := [p.hint for p in before.main.params if (p.hint or "") not in inputs]:
            raise ValueError(f"there is no input for {', '.join(f'%{name}' for name in missing)}")
        return Repro(str(record["pass"]), str(record["value"]), _trial(record), before, after, inputs, bool(record["replays"]))
    except OSError as error:
        raise IngotError(f"cannot be read: {error.strerror}", where=str(error.filename or folder)) from error
    except IngotError:
        raise
    except Exception as error:  # for damaged files zipfile, zlib and numpy raise a dozen types
        raise IngotError(f"this is no whole repro: {error}", where=str(folder),
                         hint="`--check` writes one when a pass fails") from error


def is_repro(path: Path) -> bool:
    """Whether a directory holds a repro."""
    return (path / RECORD).is_file()


def reproduce(p: Pass, value: str, slices: Iterable[tuple[Module, Module]], trial: Trial, inputs: Inputs, *,
              seed: int) -> Repro:
    """The smallest of some slices (the first shows the mistake on `inputs`) on which the pass by itself goes wrong again."""
    kept: Repro | None = None
    for before, after in slices:
        kept = kept or Repro(str(p), value, trial, before, after, inputs, False)
        try:
            made = copy_module(before)
            p.run(made, Context())
            found = trial.find(before, made, seed=seed)
        except Exception:  # whatever a broken pass does on a part of a module, the part is no repro
            continue
        if found is not None:
            return Repro(str(p), value, trial, before, made, found.inputs, True)
    assert kept is not None
    return kept


def _describe(trial: Trial) -> Mapping[str, Any]:
    if isinstance(trial, DecodeTrial):
        return {"contract": "cache", "batch": trial.batch, "length": trial.length, "rtol": trial.rtol}
    if isinstance(trial, RoundingTrial):
        return {"contract": "lossy"}
    return {"contract": "exact", "rtol": getattr(trial, "rtol", EXACT)}


def _trial(record: Mapping[str, Any]) -> Trial:
    if record["contract"] == "cache":
        if record["batch"] == record["length"]:
            raise ValueError(f"batch and length are both {record['batch']}")
        return DecodeTrial(batch=str(record["batch"]), length=str(record["length"]), rtol=float(record["rtol"]))
    if record["contract"] == "lossy":
        return RoundingTrial()
    return ExactTrial(rtol=float(record["rtol"]))


def _plain(array: np.ndarray) -> np.ndarray:
    """The bits of element types that numpy does not know by itself as unsigned integers."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype.kind in "fiub" and array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _typed(array: np.ndarray, type: TensorType) -> np.ndarray:
    dtype = type.dtype.numpy
    return array if array.dtype == dtype or dtype.isbuiltin == 1 else array.view(dtype)
