"""Using an artifact from Python: generate, stream, evaluate, bench. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ingot.calibration import Files, files_of
from ingot.errors import GenerateError
from ingot.runtime.bench import BenchResult
from ingot.runtime.bench import bench as _bench
from ingot.runtime.evaluate import Comparison, Ids, Logits, Perplexity, load_chunks, measure
from ingot.runtime.generate import GenerateOptions, Generation, Prompt
from ingot.runtime.generate import stream as _stream
from ingot.runtime.manifest import MANIFEST, Manifest
from ingot.runtime.session import Session
from ingot.runtime.tokenizer import Tokenizer, read_json


def open_session(artifact: Path | str, *, threads: int | None = None) -> Session:
    """The session of an artifact, for whichever target it was compiled."""
    if Manifest.load(artifact).target == "triton":
        from ingot.triton_session import TritonSession

        return TritonSession.open(artifact, threads=threads)
    return Session.open(artifact, threads=threads)


def stream(artifact: Path | str, prompts: Sequence[Prompt], *, threads: int | None = None, **options: Any) -> Generation:
    """A Generation over `prompts`: iterate for the pieces of text as they come.

    options: fields of GenerateOptions and SamplingOptions (max_new_tokens, temperature, top_k, seed, stop, ...); what
    is not given comes from the model's generation_config.json.
    """
    session = open_session(artifact, threads=threads)
    texts = any(not (isinstance(p, list | tuple) and p and isinstance(p[0], int)) for p in prompts)
    tokenizer = Tokenizer.open(artifact) if texts or (Path(artifact) / "tokenizer.json").exists() else None
    return _stream(session, tokenizer, prompts, GenerateOptions.for_artifact(artifact, **options))


def has_chat_template(artifact: Path | str) -> bool:
    """Whether the artifact's tokenizer comes with a chat template."""
    config = read_json(Path(artifact) / "tokenizer_config.json")
    return (Path(artifact) / "chat_template.jinja").exists() or bool(config.get("chat_template"))


def generate(artifact: Path | str, prompt: Prompt | Sequence[Prompt], **options: Any) -> str | list[str]:
    """The continuation of one prompt, or of each of a list of texts. Options as in `stream`."""
    single = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int | dict))
    prompts: Sequence[Any] = [prompt] if single else prompt
    generation = stream(artifact, prompts, **options)
    for _ in generation:
        pass
    texts = [result.text for result in generation.results]
    return texts[0] if single else texts


def evaluate(artifact: Path | str, text: Files, *, against: Path | str | None = None, context: int = 1024, batch: int = 1,
             chunks: int | None = None, threads: int | None = None,
             progress: Callable[[int, int, str], None] | None = None) -> dict[str, Perplexity | Comparison]:
    """Perplexity per domain of text files (.txt, .jsonl) or of .npz files of token chunks; with `against` (an artifact or a
    model), also KL divergence and top-1 agreement. chunks: use only so many of each domain. The last entry, `all`, is over
    everything, where all chunks are of one length."""
    session = open_session(artifact, threads=threads)
    if session.manifest.kind != "decoder":
        raise GenerateError(f"this artifact is of kind {session.manifest.kind}; only decoders are evaluated")
    files = files_of(text)
    tokenizer = Tokenizer.open(artifact) if any(file.suffix != ".npz" for file in files) else None
    domains: dict[str, Ids] = {}
    for file in files:
        for name, ids in load_chunks(file, tokenizer=tokenizer, context=min(context, session.context), chunks=chunks).items():
            domains[name if name not in domains else str(file)] = ids
    reference = _logits_of(against, threads=threads) if against is not None else None
    return measure(session.logits, domains, reference=reference, batch=batch, progress=progress)


def _logits_of(model: Path | str, *, threads: int | None) -> Logits:
    """The logits of another artifact, or of a model through the torch executor."""
    if (Path(model) / MANIFEST).exists():
        return open_session(model, threads=threads).logits
    from ingot.compiler import reference_logits

    return reference_logits(model)


def bench(artifact: Path | str, *, threads: int | None = None, tune: bool = False, **options: Any) -> BenchResult:
    """Prefill and decode speed; options as in `ingot.runtime.bench.bench`. tune: first measure the settings of kernels on this
    GPU, and keep the fastest with the artifact."""
    session = open_session(artifact, threads=threads)
    if session.manifest.kind != "decoder":
        raise GenerateError(f"this artifact is of kind {session.manifest.kind}; only decoders are benchmarked")
    if tune:
        from ingot.triton_session import TritonSession

        if not isinstance(session, TritonSession):
            raise GenerateError(f"an artifact for {session.manifest.target} has nothing to tune", hint="those for triton have")
        session.tune(batch=options.get("batch", 1), prompt=options.get("prompt_tokens", 512))
    return _bench(session, **options)


__all__ = ["Generation", "bench", "evaluate", "generate", "stream"]
