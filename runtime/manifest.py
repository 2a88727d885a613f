"""The manifest of an artifact: `ingot.json`, what the graph takes and gives, and which files belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ingot.errors import ArtifactError
from ingot.runtime.records import record

FORMAT = 1
"""The artifact format this code reads and writes; a larger number in a manifest is refused."""

MANIFEST = "ingot.json"
"""The manifest's file name; a directory that has it is an artifact."""

TARGETS = ("ort", "torch", "triton")
KINDS = ("decoder", "encoder", "vision", "other")
STATE_ROLES = ("cache", "cache_scale")
"""Roles of inputs the session owns and hands back in on the next call."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of the graph."""

    name: str
    dtype: str
    """Element type as in dumps: f32, i64, i8, ..."""
    dims: tuple[int | str, ...]
    """Sizes; a string is a symbol. In a decoder: B batch, S new tokens, N wanted logits, T cache capacity."""
    role: str = "other"
    """ids, positions, take, adapter, logits, cache, cache_scale or other."""
    aliases: str | None = None
    """For an output: the input whose buffer it is written into."""

    def to_json(self) -> dict[str, Any]:
        """The manifest entry of this port."""
        data: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "dims": list(self.dims), "role": self.role}
        return data if self.aliases is None else {**data, "aliases": self.aliases}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `ingot.json` says. File names are relative to the artifact."""

    target: str
    """Which backend runs the graph: ort, torch or triton."""
    kind: str
    """decoder, encoder, vision or other."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    version: str = ""
    """The ingot version that wrote it."""
    recipe: str | None = None
    pipeline: str = ""
    """The passes that ran, as pipeline text."""
    source: str = ""
    """What was compiled: a path or a module name."""
    graph: str = "model.onnx"
    weights: str = "weights.bin"
    graph_weights: tuple[Mapping[str, Any], ...] = ()
    """The plan of the graph's own weights file, as in `prefill_weights`; without one the graph reads the artifact's."""
    context: int = 0
    """Most positions a row may hold (tokens); 0 where the kind has none."""
    window: int | None = None
    """Sliding attention window in tokens, when every layer has the same one."""
    vocab: int = 0
    adapters: tuple[str, ...] = ()
    """Adapters that rows may choose from, by name: the input with the role adapter takes 1 for the first, 0 for none."""
    prefill_graph: str | None = None
    """A second graph with the same ports, faster on many tokens."""
    prefill_from: int = 0
    """Fewest new tokens, in all sequences together, for which the prefill graph is used."""
    prefill_weights: tuple[Mapping[str, Any], ...] = ()
    """The plan of the prefill graph's weights file, which is made when the graph is loaded; see `ingot.runtime.prefill`."""
    prefill_steps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Int8 cache inputs that the prefill graph takes as floats: where the steps of the codes (f32) lie in the weights file."""
    receipts: str = "receipts.json"
    stages: tuple[str, ...] = ()
    """Dumps in pipeline order, `stages/00-import.ir` first."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Every other file of the artifact and its size in bytes."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys this version does not know: kept, not interpreted."""

    def input_with_role(self, role: str) -> Port:
        """The one input with `role`; ArtifactError when there is none or more than one."""
        return _only(self.inputs, role, "input")

    def output_with_role(self, role: str) -> Port:
        """The one output with `role`; ArtifactError when there is none or more than one."""
        return _only(self.outputs, role, "output")

    @property
    def states(self) -> tuple[tuple[Port, Port], ...]:
        """Pairs of a state input and the output that updates it, in input order."""
        by_input = {port.aliases: port for port in self.outputs if port.aliases is not None}
        return tuple((port, by_input[port.name]) for port in self.inputs if port.role in STATE_ROLES)

    @classmethod
    def load(cls, path: Path | str, *, check_files: bool = True) -> Manifest:
        """The manifest of the artifact at `path`.

        ArtifactError when the path is missing, is something else, was written by a newer ingot, or (with
        `check_files`) lacks a recorded file or has one of another size.
        """
        root = Path(path)
        manifest = cls.from_json(_read(root), where=str(root / MANIFEST))
        if check_files:
            _check_files(root, manifest.files)
        return manifest

    @classmethod
    def from_json(cls, data: Any, *, where: str = MANIFEST) -> Manifest:
        """The manifest in a JSON value; ArtifactError when it is not a whole one."""
        if not isinstance(data, dict) or not isinstance(data.get("ingot"), int):
            raise ArtifactError("this is not an ingot manifest: the key \"ingot\" is missing", where=where,
                                hint="compile the model again: ingot compile MODEL -o OUT")
        if data["ingot"] > FORMAT:
            raise ArtifactError(f"artifact format {data['ingot']} is newer than this ingot understands ({FORMAT})",
                                where=where, hint="upgrade ingot, or compile the model again with this version")
        known = {f.name for f in fields(cls)} - {"extra"}
        values = {key: value for key, value in data.items() if key in known}
        values["extra"] = {key: value for key, value in data.items() if key not in known and key != "ingot"}
        try:
            manifest = record(cls, values)
        except TypeError as error:
            raise ArtifactError(f"the manifest is damaged: {error}", where=where,
                                hint="compile the model again: ingot compile MODEL -o OUT") from error
        manifest._validate(where)
        return manifest

    def to_json(self) -> dict[str, Any]:
        """The JSON value `from_json` reads back."""
        data: dict[str, Any] = {"ingot": FORMAT}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("inputs", "outputs"):
                data[f.name] = [port.to_json() for port in value]
            elif f.name != "extra":
                data[f.name] = list(value) if isinstance(value, tuple) else value
        return {**data, "files": dict(sorted(self.files.items())), **self.extra}

    def save(self, path: Path | str) -> None:
        """Writes `ingot.json` into the directory `path`."""
        (Path(path) / MANIFEST).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def _validate(self, where: str) -> None:
        def fail(message: str) -> ArtifactError:
            return ArtifactError(message, where=where, hint="compile the model again: ingot compile MODEL -o OUT")

        if self.target not in TARGETS:
            raise fail(f"unknown target {self.target!r}; there are: {', '.join(TARGETS)}")
        if self.kind not in KINDS:
            raise fail(f"unknown kind {self.kind!r}; there are: {', '.join(KINDS)}")
        for name in filter(None, (self.graph, self.weights, self.receipts, self.prefill_graph, *self.stages, *self.files)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.isprintable():
                raise fail(f"{name!r} cannot be a file of an artifact")
        updates = {port.aliases: port for port in self.outputs if port.aliases is not None}
        for port in self.inputs:
            update = updates.get(port.name)
            if port.role in STATE_ROLES and (update is None or (update.dtype, update.dims) != (port.dtype, port.dims)):
                raise fail(f"no output of type {port.dtype}{list(port.dims)} aliases the cache input {port.name!r}")
        if self.kind != "decoder":
            return
        for role in ("ids", "positions", "take"):
            self.input_with_role(role)
        self.output_with_role("logits")
        if self.context < 1 or self.vocab < 1:
            raise fail("a decoder needs a context and a vocab of at least 1")
        if (logits := self.output_with_role("logits").dims[-1:]) != (self.vocab,):
            raise fail(f"the logits have a last axis of {list(logits)}, the vocab is {self.vocab}")


def _only(ports: Iterable[Port], role: str, what: str) -> Port:
    found = [port for port in ports if port.role == role]
    if len(found) != 1:
        raise ArtifactError(f"the graph has {len(found)} {what}s with the role {role!r}, one is needed", where=MANIFEST)
    return found[0]


def _read(root: Path) -> Any:
    """The parsed manifest of the directory `root`, or a clear error about what `root` is instead."""
    where = str(root)
    compile_hint = f"compile it first: ingot compile {root} -o OUT"
    if not root.exists():
        aside = displaced(root)
        hint = f"a replacement of it was interrupted; bring it back with: mv {aside} {root}" if aside.exists() else None
        raise ArtifactError("there is no such artifact", where=where, hint=hint or "check the path")
    if not root.is_dir():
        raise ArtifactError("an artifact is a directory, this is a file", where=where, hint=compile_hint)
    file = root / MANIFEST
    if not file.exists():
        raise ArtifactError(f"this directory is not an ingot artifact (it has no {MANIFEST})", where=where,
                            hint=compile_hint if (root / "config.json").exists() else "check the path")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the manifest cannot be read: {error}", where=str(file),
                            hint="compile the model again: ingot compile MODEL -o OUT") from error


def _check_files(root: Path, files: Mapping[str, int]) -> None:
    hint = "the artifact was copied or written in part: copy it again, or compile it again"
    for name, size in files.items():
        try:
            actual = (root / name).stat().st_size
        except OSError:
            raise ArtifactError(f"{name} is missing", where=str(root), hint=hint) from None
        if actual != size:
            verb = "truncated" if actual < size else "not the file that was written"
            raise ArtifactError(f"{name} is {verb}: {actual:,} bytes, the manifest says {size:,}", where=str(root), hint=hint)


def displaced(path: Path) -> Path:
    """Where a replaced artifact waits while two renames swap it (only where the system cannot exchange names)."""
    return path.with_name(f".{path.name}.ingot-old")
