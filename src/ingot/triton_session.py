"""Running an artifact for the target triton: the session whose caches and decode step live on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ingot.errors import ArtifactError, GenerateError, IngotError
from ingot.runtime.manifest import Manifest
from ingot.runtime.sampling import Sampler
from ingot.runtime.session import Floats, Session

if TYPE_CHECKING:
    import torch

    from ingot.backends.triton.decoder import Decoder
    from ingot.backends.triton.module import TritonModule
    from ingot.backends.triton.sampling import Choice

Timer = Callable[[Callable[[], None]], float]
"""Times a call on the device (seconds)."""
SMALLEST = 64
"""The capacity the first caches have (positions)."""
CHUNK = 2048
"""Prompt tokens per run in prefill."""


class TritonSession(Session):
    """A decoder on the GPU; the interface of `Session`, and `generate_greedy`, which never waits for the host."""

    def __init__(self, path: Path, manifest: Manifest, compiled: TritonModule) -> None:
        """Use `TritonSession.open`."""
        self.path, self.manifest, self.threads = path, manifest, None
        self._compiled = compiled
        self._lengths = np.zeros(0, np.int64)
        self._decoder: Decoder | None = None

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None, device: str | None = None) -> TritonSession:
        """Opens the artifact at `path` (target triton) on a CUDA device; on "cpu" only where Triton interprets kernels.

        ArtifactError when it is not a whole artifact, IngotError when there is no GPU. threads: not used.
        """
        import torch

        from ingot.backends.triton.module import TritonModule
        from ingot.backends.triton.paging import PAGE
        from ingot.backends.triton.stored import read_module
        from ingot.backends.triton.tuning import TABLE, Tuner

        root = Path(path)
        manifest = Manifest.load(root)
        if manifest.target != "triton":
            raise ArtifactError(f"this artifact is for the target {manifest.target}", where=str(root))
        if manifest.adapters:
            raise ArtifactError("adapters are chosen at run time on the CPU alone", where=str(root),
                                hint="compile with --target ort, or merge one: --adapter DIR")
        if device is None:
            device = "cuda"
            if not torch.cuda.is_available():
                raise IngotError("this artifact runs on a GPU, and torch finds none", where=str(root),
                                 hint="compile with --target ort for the CPU")
        tuner = Tuner.load(root / TABLE, torch.cuda.get_device_name() if device == "cuda" else device)
        return cls(root, manifest, TritonModule(read_module(root), device=device, tuner=tuner, prebuilt=root, page=PAGE))

    def tune(self, *, batch: int = 1, prompt: int = 512, seconds: Timer | None = None) -> Path:
        """Measures the settings of every kernel on this device, for steps of `batch` rows and for prompts of `prompt` tokens,
        and keeps the fastest with the artifact, for every session that opens it; the file. Ends the rows held.

        seconds: times a call; by Triton's own `do_bench` when not given. ArtifactError when the file cannot be written.
        """
        from triton.testing import do_bench

        from ingot.backends.triton.decoder import Decoder
        from ingot.backends.triton.tuning import TABLE

        measure: Any = do_bench
        self._require_decoder()
        self._decoder, self._lengths = None, np.zeros(0, np.int64)
        prompt = min(prompt, self.context)
        for rows, tokens, start in ((batch, 1, prompt - 1), (1, prompt, 0)):
            made = Decoder(self._compiled, batch=rows, capacity=self._capacity(prompt))
            self._compiled.tune(made.trial(tokens, start=start), seconds or (lambda call: measure(call, 5, 25) / 1e3))
        file = self.path / TABLE
        try:
            self._compiled.tuner.save(file)
        except OSError as error:
            raise ArtifactError(f"the settings cannot be kept: {error.strerror}", where=str(file)) from error
        return file

    @property
    def cache_bytes(self) -> int:
        """Size of the cache buffers (bytes)."""
        return sum(t.nbytes for t in self._decoder.caches.tensors.values()) if self._decoder is not None else 0

    def prefill(self, prompts: Sequence[ArrayLike], *, chunk: int = CHUNK, append: bool = False,
                adapters: Sequence[str | None] = ()) -> Floats:
        """As `Session.prefill`; a GPU wants larger chunks."""
        return super().prefill(prompts, chunk=max(chunk, CHUNK), append=append, adapters=adapters)

    def step(self, ids: ArrayLike, *, hold: NDArray[np.bool_] | None = None) -> Floats:
        """As `Session.step`."""
        self._require_rows(1)
        logits = _array(self._ready(ids, 1).step())
        self._lengths += 1 if hold is None else ~hold
        return logits

    def step_tokens(self, ids: ArrayLike, sampler: Sampler, *, hold: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """As `Session.step_tokens`; tokens are chosen on the device, and they alone come to the host."""
        from ingot.backends.triton.sampling import Choice

        options = sampler.options
        if options.repetition_penalty != 1:
            return super().step_tokens(ids, sampler, hold=hold)
        self._require_rows(1)
        decoder, choice = self._ready(ids, 1), Choice()
        if not options.greedy:
            choice = Choice(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
            decoder.uniform.copy_(self._tensor(sampler.draws().astype(np.float32)))
        decoder.step(choice)
        self._lengths += 1 if hold is None else ~hold
        return decoder.ids[:, 0].cpu().numpy()

    def generate_greedy(self, ids: ArrayLike, count: int, choice: Choice | None = None) -> NDArray[np.int64]:
        """The `count` tokens after ids i64[B], chosen on the device, i64[B, count]; greedy unless `choice` says otherwise."""
        import torch

        from ingot.backends.triton.sampling import Choice

        self._require_rows(count)
        decoder = self._ready(ids, count)
        made = torch.empty((self.batch, count), dtype=torch.int64, device=self._compiled.device)
        for i in range(count):
            if choice is not None and choice.temperature > 0:
                decoder.uniform.uniform_()
            decoder.step(choice or Choice())
            made[:, i] = decoder.ids[:, 0]
        self._lengths += count
        return made.cpu().numpy()

    def select(self, rows: Sequence[int]) -> None:
        """As `Session.select`."""
        self._require_decoder()
        if len(rows) == 0 or min(rows) < 0 or max(rows) >= self.batch:
            raise GenerateError(f"cannot keep the rows {list(rows)} of {self.batch}")
        self._lengths = self._lengths[np.asarray(rows)]
        self._decoder = self._held.select(rows, self._lengths.tolist(), self._held.capacity)

    def run(self, inputs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """As `Session.run`."""
        if self.manifest.kind == "decoder":
            raise GenerateError("a decoder is run with prefill, step and forward, not with run")
        names = {port.name for port in self.manifest.inputs}
        if names != set(inputs):
            raise GenerateError(f"the inputs given are {sorted(inputs)}, the graph takes {sorted(names)}")
        outputs = self._compiled.run({name: self._tensor(np.asarray(a)) for name, a in inputs.items()})
        return dict(zip((port.name for port in self.manifest.outputs), map(_array, outputs), strict=True))

    @property
    def _held(self) -> Decoder:
        if self._decoder is None:
            raise GenerateError("the session holds no rows", hint="call prefill or reset first")
        return self._decoder

    def _call(self, ids: NDArray[np.int64], take: NDArray[np.int64], *, row: int | None = None, prefill: bool | None = None,
              total: int | None = None) -> Floats:
        rows = slice(None) if row is None else slice(row, row + 1)
        pos = self._lengths[rows, None] + np.arange(ids.shape[1])
        self._held.reserve(self._lengths[rows].tolist(), (self._lengths[rows] + ids.shape[1]).tolist(), row=row)
        logits = self._held.feed(self._tensor(ids), self._tensor(pos), self._tensor(take), row=row)
        self._lengths[rows] += ids.shape[1]
        return _array(logits)

    def _ready(self, ids: ArrayLike, tokens: int) -> Decoder:
        """The decoder about to read ids i64[B], with room for so many more tokens of every row."""
        self._reserve(int(self._lengths.max()) + tokens)
        decoder = self._held
        decoder.reserve(self._lengths.tolist(), (self._lengths + tokens).tolist())
        decoder.ids.copy_(self._tensor(np.asarray(ids, np.int64).reshape(-1, 1)))
        decoder.pos.copy_(self._tensor(self._lengths[:, None]))
        return decoder

    def _reserve(self, positions: int) -> bool:
        from ingot.backends.triton.decoder import Decoder

        held, batch = self._decoder, self.batch
        if held is not None and held.batch == batch and positions <= held.capacity:
            return False
        if held is not None and held.batch == batch and self._lengths.any():
            self._decoder = held.select(range(batch), self._lengths.tolist(), self._capacity(positions))
        else:
            self._decoder = None  # its memory is wanted for the next
            self._decoder = Decoder(self._compiled, batch=batch, capacity=self._capacity(positions))
        return True

    def _capacity(self, positions: int) -> int:
        """Positions that rows get room for. Pages are taken as they are needed, so that more of them costs nothing."""
        if self._compiled.page:
            return self.context
        return min(max(SMALLEST, 1 << (max(positions, 1) - 1).bit_length()), self.context)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self._compiled.device)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    from ingot.backends.torch.tensors import to_array

    array = to_array(tensor)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
