"""Running an artifact: the session that prefills prompts and steps a decoder, or runs an encoder once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ingot.errors import ArtifactError, GenerateError
from ingot.runtime.cache import KVCache
from ingot.runtime.manifest import Manifest, Port
from ingot.runtime.ort import Array, Graph, numpy_dtype, value, zeros
from ingot.runtime.prefill import cache_steps, prefill_weights
from ingot.runtime.sampling import Sampler

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

CHUNK = 128
"""Prompt tokens per call of the graph in prefill."""

WORTH = 64
"""Cached positions that may be turned into floats for the sake of one new token in the prefill graph."""


class Session:
    """An opened artifact.

    A decoder session holds B rows, each with its own number of cached positions. `prefill` starts rows from
    prompts, `step` adds one token to every row, `forward` adds several and returns logits for any of them,
    `rewind` takes tokens back, `select` keeps or reorders rows. Other kinds have `run`.
    """

    def __init__(self, path: Path, manifest: Manifest, graph: Graph, *, threads: int | None = None) -> None:
        """Use `Session.open`."""
        self.path = path
        self.manifest = manifest
        self.threads = threads
        """Threads within one operator; None where ONNX Runtime chose."""
        self._graph = graph
        self._prefill_graph: Graph | None = None
        self._lengths: Ids = np.zeros(0, np.int64)
        self._adapters: Ids = np.zeros(0, np.int64)
        self._step: _Call | None = None
        steps = cache_steps(manifest, path) if manifest.prefill_graph is not None else {}
        self._cache = KVCache(manifest.states, context=manifest.context, steps=steps)
        _check_ports(path, manifest, graph)
        if manifest.kind == "decoder":
            roles = ("ids", "positions", "take", *(("adapter",) if manifest.adapters else ()))
            self._roles = {role: manifest.input_with_role(role) for role in roles}
            extra = len(manifest.inputs) - len(manifest.states) - len(self._roles)
            if extra:
                raise ArtifactError(f"this decoder has {extra} inputs whose role the runtime does not know", where=str(path))

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None) -> Session:
        """Opens the artifact at `path` (target ort); `threads` within one operator, None for one per core.

        ArtifactError when it is not a whole artifact or ONNX Runtime cannot load it.
        """
        root = Path(path)
        manifest = Manifest.load(root)
        if manifest.target != "ort":
            raise ArtifactError(f"this artifact is for the target {manifest.target}, not for ONNX Runtime", where=str(root),
                                hint=f"open it with ingot.load, or compile again: ingot compile {manifest.source} "
                                     "--target ort -o OUT")
        if threads is not None and threads < 1:
            raise GenerateError(f"threads must be at least 1, not {threads}")
        with prefill_weights(manifest.graph_weights, root / manifest.weights) as folder:
            return cls(root, manifest, Graph(root / manifest.graph, threads=threads, weights=folder), threads=threads)

    @property
    def context(self) -> int:
        """Most positions a row can hold (tokens)."""
        return self.manifest.context

    @property
    def batch(self) -> int:
        """Rows held now."""
        return len(self._lengths)

    @property
    def lengths(self) -> Ids:
        """Cached positions of every row, i64[B]; a copy."""
        return self._lengths.copy()

    @property
    def cache_bytes(self) -> int:
        """Size of the cache buffers (bytes)."""
        return self._cache.nbytes

    def reset(self, batch: int = 1, *, reserve: int = 0, adapters: Sequence[str | None] = ()) -> None:
        """Starts `batch` empty rows with room for `reserve` positions, to spare growing later.

        adapters: those of the artifact that the rows use, by name, None for none; one is for all rows, no entry is none.
        """
        self._require_decoder()
        self._adapters = self._numbers(adapters, batch)
        self._lengths = np.zeros(batch, np.int64)
        self._reserve(min(reserve, self.context))

    def prefill(self, prompts: Sequence[ArrayLike], *, chunk: int = CHUNK, append: bool = False,
                adapters: Sequence[str | None] = ()) -> Floats:
        """Feeds one prompt per row and returns the logits after its last token, f32[B, V].

        prompts: token ids i64[n] of any lengths from 1 on. append: continue the rows held, instead of new ones. adapters:
        of new rows, as in `reset`.
        Rows run one after the other, each on its own slice of the cache, `chunk` tokens a call: a row's result
        does not depend on its neighbours, and no call works on padding.
        GenerateError when a prompt is empty, has unknown ids or does not fit the context.
        """
        self._require_decoder()
        rows = [np.ascontiguousarray(prompt, np.int64).reshape(-1) for prompt in prompts]
        if not rows:
            raise GenerateError("there is no prompt")
        if append and len(rows) != self.batch:
            raise GenerateError(f"{len(rows)} prompts cannot continue {self.batch} rows")
        starts = self._lengths if append else np.zeros(len(rows), np.int64)
        for index, (start, ids) in enumerate(zip(starts, rows, strict=True)):
            self._check_prompt(index, int(start), ids)
        if not append:
            self.reset(len(rows), adapters=adapters)
        self._reserve(int(max(start + len(ids) for start, ids in zip(starts, rows, strict=True))))
        logits = np.empty((len(rows), self.manifest.vocab), np.float32)
        for row, ids in enumerate(rows):
            for first in range(0, len(ids), chunk):
                part = ids[None, first : first + chunk]
                take = np.array([[part.shape[1] - 1]], np.int64)
                logits[row] = self._call(part, take, row=row, total=len(ids))[0, 0]  # the last chunk's stay
        return logits

    def step(self, ids: ArrayLike, *, hold: NDArray[np.bool_] | None = None) -> Floats:
        """Adds one token to every row, ids i64[B], and returns the logits after it, f32[B, V].

        The result is a view of one buffer that the next step overwrites. Rows where `hold` is true are computed
        but not advanced: the position written is written again later. GenerateError when a row is full.
        """
        self._require_rows(1)
        if self._reserve(int(self._lengths.max()) + 1) or self._step is None:
            graph = self._choose(self.batch, None)
            self._step = _Call(graph, self, batch=self.batch, tokens=1, wanted=1)
        call = self._step
        call.adapter[:] = self._adapters
        call.ids[:, 0] = ids
        call.positions[:, 0] = self._lengths
        call.run()
        self._lengths += 1 if hold is None else ~hold
        return call.logits[:, 0]

    def step_tokens(self, ids: ArrayLike, sampler: Sampler, *, hold: NDArray[np.bool_] | None = None) -> Ids:
        """As `step`, but chooses the tokens that follow, i64[B]."""
        return sampler.choose(self.step(ids, hold=hold))

    def forward(self, ids: ArrayLike, *, take: ArrayLike | None = None, prefill: bool | None = None) -> Floats:
        """Adds S tokens to every row, ids i64[B, S], and returns logits for the wanted ones, f32[B, N, V].

        take: indices into S, i64[B, N]; None wants all. prefill: whether to use the prefill graph; None decides by S.
        """
        tokens = np.ascontiguousarray(ids, np.int64)
        if tokens.ndim != 2 or tokens.size == 0:
            raise GenerateError(f"forward takes ids of shape [batch, tokens], not {list(tokens.shape)}")
        batch, count = tokens.shape
        if batch != self.batch:
            raise GenerateError(f"{batch} rows of ids for {self.batch} rows held", hint="call reset(batch) first")
        self._require_rows(count)
        wanted = np.tile(np.arange(count), (batch, 1)) if take is None else np.ascontiguousarray(take, np.int64)
        self._reserve(int(self._lengths.max()) + count)
        if batch == 1 or count == 1 or not self._lengths.any():
            return self._call(tokens, wanted, prefill=prefill)
        # GroupQueryAttention refuses a batch of several tokens after a past, so each row runs on its own.
        return np.concatenate([self._call(tokens[row : row + 1], wanted[row : row + 1], row=row, prefill=prefill)
                               for row in range(batch)])

    def logits(self, ids: ArrayLike, *, prefill: bool | None = None, adapters: Sequence[str | None] = ()) -> Floats:
        """Logits of whole sequences from an empty cache: ids i64[B, S] to f32[B, S, V]. adapters: as in `reset`."""
        tokens = np.atleast_2d(np.asarray(ids, np.int64))
        self.reset(len(tokens), adapters=adapters)
        return self.forward(tokens, prefill=prefill)

    def rewind(self, count: int | ArrayLike) -> None:
        """Takes back the last `count` tokens of every row; one number, or i64[B]."""
        lengths = self._lengths - np.asarray(count, np.int64)
        if (lengths < 0).any() or (lengths > self._lengths).any():
            raise GenerateError(f"cannot rewind {np.asarray(count).tolist()} tokens of rows of {self._lengths.tolist()}")
        self._lengths = lengths

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows (indices, in this order, repeats allowed) and drops the others."""
        self._require_decoder()
        if len(rows) == 0 or min(rows) < 0 or max(rows) >= self.batch:
            raise GenerateError(f"cannot keep the rows {list(rows)} of {self.batch}")
        self._lengths = self._lengths[np.asarray(rows)]
        self._adapters = self._adapters[np.asarray(rows)]
        self._cache.select(rows)
        self._step = None

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Runs an encoder, vision or other graph once: arrays by input name to arrays by output name."""
        if self.manifest.kind == "decoder":
            raise GenerateError("a decoder is run with prefill, step and forward, not with run")
        names = {port.name for port in self.manifest.inputs}
        if names != set(inputs):
            raise GenerateError(f"the inputs given are {sorted(inputs)}, the graph takes {sorted(names)}")
        sizes: dict[str, int] = {}
        feed = {port.name: _fit(port, inputs[port.name], sizes) for port in self.manifest.inputs}
        return dict(zip((port.name for port in self.manifest.outputs), self._graph.run(feed), strict=True))

    def _call(self, ids: Ids, take: Ids, *, row: int | None = None, prefill: bool | None = None,
              total: int | None = None) -> Floats:
        """Feeds ids i64[B, S] to all rows, or i64[1, S] to one, and advances them; logits f32[B, N, V] of their own."""
        batch, tokens = ids.shape
        graph = self._choose(batch * tokens if total is None else total, prefill)
        call = _Call(graph, self, batch=batch, tokens=tokens, wanted=take.shape[1], row=row)
        rows = slice(None) if row is None else slice(row, row + 1)
        call.ids[:], call.take[:], call.adapter[:] = ids, take, self._adapters[rows]
        call.positions[:] = self._lengths[rows, None] + np.arange(tokens)
        call.run()
        self._lengths[rows] += tokens
        return call.logits

    def _choose(self, rows: int, prefill: bool | None) -> Graph:
        """The graph for `rows` new tokens in all sequences together, and the cache in the form that it takes.

        Loads the prefill graph when it is first wanted.
        """
        manifest = self.manifest
        held = int(self._lengths.max(initial=0))
        wanted = prefill
        if wanted is None:
            wanted = rows >= max(manifest.prefill_from, 2) and (self._cache.wide or rows * WORTH >= held)
        wanted = wanted and manifest.prefill_graph is not None
        if self._cache.become(wide=wanted, keep=held):
            self._step = None
        if not wanted or manifest.prefill_graph is None:
            return self._graph
        if self._prefill_graph is None:
            with prefill_weights(manifest.prefill_weights, self.path / manifest.weights) as folder:
                self._prefill_graph = Graph(self.path / manifest.prefill_graph, threads=self.threads, weights=folder)
        return self._prefill_graph

    def _reserve(self, positions: int) -> bool:
        keep = int(self._lengths.max(initial=0))
        moved = self._cache.reserve(self.batch, positions, keep=keep)
        if moved:
            self._step = None
        return moved

    def _check_prompt(self, index: int, start: int, ids: Ids) -> None:
        if len(ids) == 0:
            raise GenerateError(f"prompt {index} is empty", hint="give at least one token, the BOS token for instance")
        if ids.min() < 0 or ids.max() >= self.manifest.vocab:
            raise GenerateError(f"prompt {index} has a token id outside 0..{self.manifest.vocab - 1}",
                                hint="was it made with another tokenizer?")
        if start + len(ids) > self.context:
            after = f" after {start:,} cached" if start else ""
            raise GenerateError(f"prompt {index} has {len(ids):,} tokens{after}, the model's context is {self.context:,}",
                                hint="shorten the prompt")

    def _numbers(self, adapters: Sequence[str | None], batch: int) -> Ids:
        """What the graph takes for the names of adapters."""
        known = self.manifest.adapters
        named = list(adapters) * batch if len(adapters) == 1 else list(adapters) or [None] * batch
        if len(named) != batch:
            raise GenerateError(f"{len(named)} adapters for {batch} rows", hint="give one for each row, or one for all")
        for name in named:
            if name is not None and name not in known:
                raise GenerateError(f"this artifact has no adapter {name}", hint=f"it has {', '.join(known)}" if known else
                                    "compile it with lora-inputs{adapters=DIR+DIR}")
        return np.array([0 if name is None else known.index(name) + 1 for name in named], np.int64)

    def _require_decoder(self) -> None:
        if self.manifest.kind != "decoder":
            raise GenerateError(f"this artifact is of kind {self.manifest.kind}; only a decoder generates text",
                                hint="use Session.run")

    def _require_rows(self, tokens: int) -> None:
        """Refuses to go on without rows, or past the context."""
        self._require_decoder()
        if self.batch == 0:
            raise GenerateError("the session holds no rows", hint="call prefill or reset first")
        longest = int(self._lengths.max())
        if longest + tokens > self.context:
            raise GenerateError(f"a row holds {longest:,} tokens and {tokens} more do not fit the context of {self.context:,}")


class _Call:
    """One shape of decoder call with its buffers bound once: fill ids, positions and take, run, read logits."""

    def __init__(self, graph: Graph, session: Session, *, batch: int, tokens: int, wanted: int, row: int | None = None) -> None:
        roles, logits = session._roles, session.manifest.output_with_role("logits")
        self._graph = graph
        self._binding = graph.binding()
        self.ids: Ids = np.zeros((batch, tokens), np.int64)
        self.positions: Ids = np.zeros((batch, tokens), np.int64)
        self.take: Ids = np.zeros((batch, wanted), np.int64)
        self.adapter: Ids = np.zeros(batch, np.int64)
        self.logits: Floats = zeros((batch, wanted, session.manifest.vocab), "f32")
        given = {"ids": self.ids, "positions": self.positions, "take": self.take, "adapter": self.adapter}
        for role, port in roles.items():
            self._binding.bind_ortvalue_input(port.name, value(given[role]))
        self._binding.bind_ortvalue_output(logits.name, value(self.logits))
        session._cache.bind(self._binding, row=row)

    def run(self) -> None:
        self._graph.run_bound(self._binding)


def _check_ports(path: Path, manifest: Manifest, graph: Graph) -> None:
    """Refuses a manifest that speaks of another graph than the one beside it."""
    for said, found in ((manifest.inputs, graph.inputs), (manifest.outputs, graph.outputs)):
        names, ports = [port.name for port in said], {port.name: port.dims for port in said}
        fits = len(names) == len(ports) == len(found) and all(
            name in found and len(found[name]) == len(dims) and not any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(dims, found[name], strict=True))
            for name, dims in ports.items())
        if not fits:
            raise ArtifactError(f"the manifest is of another graph: it has {ports}, the graph {found}", where=str(path),
                                hint="the files belong to different artifacts: compile the model again")


def _fit(port: Port, given: ArrayLike, sizes: dict[str, int]) -> Array:
    """`given` as the array `port` takes; `sizes` collects what the symbols stand for."""
    array = np.asarray(given)
    fits = array.ndim == len(port.dims)
    for dim, size in zip(port.dims, array.shape, strict=False):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) and dim.isidentifier() else dim
        fits = fits and (expected == size or isinstance(expected, str))
    if not fits:
        raise GenerateError(f"the input {port.name!r} has shape {list(array.shape)}, the graph takes {list(port.dims)}")
    wanted: Any = numpy_dtype(port.dtype)
    if not np.can_cast(array.dtype, wanted, casting="same_kind"):
        raise GenerateError(f"the input {port.name!r} is {array.dtype}, the graph takes {port.dtype}")
    return np.ascontiguousarray(array, wanted)
