"""What the lossy passes of a pipeline cost: the artifact against the model before them, on a little text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.calibration import Files, check_known, described, files_of
from ingot.errors import ArtifactError
from ingot.ir.copy import copy_module
from ingot.ir.module import Module
from ingot.passes.base import Pass
from ingot.report import evaluation_text
from ingot.runtime.evaluate import Ids, Logits, cut, load_chunks, measure
from ingot.runtime.manifest import Manifest
from ingot.runtime.tokenizer import Tokenizer
from ingot.samples import HELD_OUT

FILE = "evaluation.json"
"""Where an artifact keeps it."""
CONTEXT, TOKENS = 128, 4096
"""Tokens of a chunk, and how many are used of the files given."""
SHORT = 64
"""Tokens of a chunk of the text that comes with ingot: it is small, and an interval needs several."""
BUILT_IN = "the text for measuring that comes with ingot"
AFFORDABLE = 2 * 10**9
"""Bytes of weights up to which a model is measured without being asked, and held in memory."""


class Fidelity:
    """The model as it was before the first pass that loses something, to be compared with what becomes of it.

    text: the files to measure on; None for the text that comes with ingot. Nothing is measured where the model is no decoder,
    or, without files, where nothing is lost, or the model has no tokenizer or is large.
    """

    def __init__(self, module: Module, pipeline: Sequence[Pass], *, directory: Path | None, text: Files | None = None) -> None:
        """directory: where the tokenizer lies. Raises GenerateError for a file that holds no text, PassError for one
        of another tokenizer."""
        lossy = [p for p in pipeline if p.loses or (p.contract == "cache" and p.requires())]
        self.text = text
        self.domains: dict[str, Ids] = {}
        self.original: Module | None = None
        if (lossy or text is not None) and module.meta.get("kind") == "decoder":
            context = min(CONTEXT, int(module.meta.get("context", CONTEXT)))
            self.domains = _domains(directory, files_of(text), context=context, built_in=not large(module))
            check_known(self.domains.values(), int(module.meta.get("vocab", 0)), where=described(text))
        self._first = next((i for i, p in enumerate(pipeline) if p.loses or p.contract == "cache"), -1)

    def before(self, index: int, module: Module) -> None:
        """To be told before each pass of the pipeline."""
        if self.domains and index == self._first:
            self.original = copy_module(module)

    def measured(self, manifest: Manifest, folder: Path, *, progress: Callable[[int, int, str], None] | None = None,
                 ) -> dict[str, Any] | None:
        """How far an artifact that is complete but for its manifest is from the original; kept in it, and returned.

        None where nothing is measured. Raises IngotError when the artifact does not run.
        """
        from ingot.runtime.session import Session

        if self.original is None or manifest.kind != "decoder":
            return None
        manifest.save(folder)
        found = measure(Session.open(folder).logits, self.domains, reference=reference(self.original), progress=progress)
        chunks = self.domains.values()
        record = {"text": described(self.text) if self.text else BUILT_IN, "tokens": sum(ids.size for ids in chunks),
                  "context": max(ids.shape[1] for ids in chunks), "results": {name: r.to_json() for name, r in found.items()}}
        (folder / FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record


def _domains(directory: Path | None, files: Sequence[Path], *, context: int, built_in: bool) -> dict[str, Ids]:
    has_tokenizer = directory is not None and (directory / "tokenizer.json").exists()
    tokenizer = Tokenizer.open(directory) if directory is not None and has_tokenizer else None
    if not files:
        if tokenizer is None or not built_in:
            return {}
        return {"sample": cut(tokenizer.encode(HELD_OUT, add_special=False), tokenizer, context=min(SHORT, context))}
    found = [(name, ids) for file in files for name, ids in
             load_chunks(file, tokenizer=tokenizer, context=context, chunks=TOKENS // context).items()]
    each = max(TOKENS // context // len(found), 1)
    return {name if [n for n, _ in found].count(name) == 1 else f"{name} {i}": ids[:each] for i, (name, ids) in enumerate(found)}


def large(module: Module) -> bool:
    """Whether a model's weights are too large to be held in memory beside the rest."""
    return sum(const.weight.nbytes for const in module.consts.values()) > AFFORDABLE


def reference(module: Module) -> Logits:
    """The logits of a decoder without a cache through the torch executor; weights of a large one are read op by op."""
    from ingot.backends.torch.executor import Executor
    from ingot.passes.calibration.calibrate import inputs_for

    executor = Executor(module, keep=not large(module))

    def logits(ids: np.ndarray) -> np.ndarray:
        out: np.ndarray = executor.run(inputs_for(module, ids, all_logits=True))[0].float().numpy()
        return out

    return logits


def read_evaluation(artifact: Path) -> dict[str, Any] | None:
    """What was measured when an artifact was compiled; None where nothing was. Raises ArtifactError when it is damaged."""
    file = artifact / FILE
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        evaluation_text(found)  # what can be shown has all that is asked for
        return found
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise ArtifactError(f"the evaluation is damaged: {error!r}", where=str(file),
                            hint="compile the model again: ingot compile MODEL -o OUT") from error
