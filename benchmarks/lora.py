"""Merging a trained adapter: against peft bit for bit, and what is left of it in 4 bits.

    python benchmarks/stories15m.py package/dist/llama2.data stories15m
    python benchmarks/lora.py stories15m --text examples/data/moby-dick.txt [--kind dora] [--json FILE]

Trains an adapter with peft (pip install peft accelerate) on the first four fifths of a text, merges it in ingot and in peft,
and measures the loss (nats per token) on the last fifth: of the base, of the adapted model, and of 4-bit models into which
the adapter was merged before or after they were quantised.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import peft
import torch
from rows import keep
from transformers import AutoModelForCausalLM, AutoTokenizer

import ingot
from ingot.backends.torch.executor import Executor
from ingot.ir.module import Module
from ingot.ir.ops.quant import Dequantize
from ingot.ir.value import Const

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUANTIZE = "quantize{format=int4 group=32 symmetric lm-head=none}"
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def train(base: Path, out: Path, chunks: np.ndarray, *, kind: str, rank: int, steps: int) -> None:
    """An adapter of all linears but the output projection, by AdamW on batches of four chunks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, **KINDS[kind]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        ids = torch.from_numpy(chunks[rng.integers(len(chunks), size=4)])
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(out)


def logits(module: Module, ids: np.ndarray) -> np.ndarray:
    given = {"ids": ids, "pos": np.broadcast_to(np.arange(ids.shape[1]), ids.shape)}
    found: np.ndarray = Executor(module).run([given[p.hint or ""] for p in module.main.params])[0].numpy()
    return found


def loss(module: Module, chunks: np.ndarray) -> float:
    """Mean cross-entropy of the next token, nats."""
    with torch.no_grad():
        found = torch.from_numpy(logits(module, chunks))[:, :-1].flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(found, torch.from_numpy(chunks)[:, 1:].flatten()))


def optimized(base: Path, passes: str) -> tuple[Module, dict[str, Any]]:
    """A model after passes, and the details of the last receipt."""
    module = ingot.load(base)
    receipts = ingot.optimize(module, passes)
    return module, receipts[-1].details if receipts else {}


def decoded(op: Dequantize) -> np.ndarray:
    parts = iter([v.weight.materialize() for v in op.operands if isinstance(v, Const)])
    found: np.ndarray = op.reference(*op.map_operands(lambda _: next(parts)))
    return found


def measured_errors(base: Path, adapter: Path, module: Module) -> dict[str, dict[str, float]]:
    """What the receipt states, measured from outside: peft merges into a model of the decoded 4-bit base weights."""
    quantised, _ = optimized(base, QUANTIZE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = model.state_dict()
    for op in quantised.ops:
        if isinstance(op, Dequantize):
            state[str(op.packed.hint).removesuffix(".packed")].copy_(torch.from_numpy(decoded(op)))
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    found: dict[str, dict[str, float]] = {}
    for op in module.ops:
        if isinstance(op, Dequantize):
            name = str(op.packed.hint).removesuffix(".packed")
            w = merged[name].numpy()
            error = np.abs(decoded(op) - w)
            found[name] = {"max": float(error.max() / np.abs(w).max()), "mean": float(error.mean() / np.abs(w).mean())}
    return found


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A text file to train and measure on.")
@click.option("--kind", type=click.Choice(list(KINDS)), default="lora", show_default=True)
@click.option("--rank", default=8, show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--length", default=64, show_default=True, help="Tokens of a chunk.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Records by kind; those of others are kept.")
def main(base: Path, text: Path, kind: str, rank: int, steps: int, length: int, out: Path | None) -> None:
    ids = np.asarray(AutoTokenizer.from_pretrained(base)(text.read_text(encoding="utf-8")).input_ids, np.int64)
    chunks = ids[:len(ids) // length * length].reshape(-1, length)
    seen, unseen = np.split(chunks, [len(chunks) * 4 // 5])
    with tempfile.TemporaryDirectory() as folder:
        adapter, reference = Path(folder) / "adapter", Path(folder) / "merged"
        start = time.perf_counter()
        train(base, adapter, seen, kind=kind, rank=rank, steps=steps)
        trained = time.perf_counter() - start
        adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        with torch.no_grad():
            beside = adapted(input_ids=torch.from_numpy(unseen[:4])).logits.numpy()
        adapted.merge_and_unload().save_pretrained(reference)

        merge = f"merge-lora{{adapter={adapter}}}"
        ours, theirs = optimized(base, merge)[0], ingot.load(reference)
        same = [bool(np.array_equal(c.weight.materialize(), theirs.consts[name].weight.materialize()))
                for name, c in ours.consts.items()]
        mine = logits(ours, unseen[:4])
        onto, details = optimized(base, f"{QUANTIZE},{merge}")
        stated, measured = details["requantised"], measured_errors(base, adapter, onto)
        record = {
            "kind": kind, "rank": rank, "steps": steps, "train_seconds": round(trained, 1), "unseen_tokens": int(unseen.size),
            "weights": len(same), "weights_equal": sum(same),
            "logits_equal": bool(np.array_equal(mine, logits(theirs, unseen[:4]))),
            "logits_from_unmerged": float(np.abs(mine - beside).max()), "logits_size": float(np.abs(beside).max()),
            "loss": {"base": loss(ingot.load(base), unseen), "adapted": loss(ours, unseen),
                     "int4 base": loss(optimized(base, QUANTIZE)[0], unseen),
                     "merged, then int4": loss(optimized(base, f"{merge},{QUANTIZE}")[0], unseen),
                     "int4, then merged": loss(onto, unseen)},
            "stated_error": details["error"],
            "stated_less_measured": max(abs(stated[n][k] - measured[n][k]) for n in measured for k in ("max", "mean"))}
    click.echo(json.dumps(record, indent=1))
    keep(out, kind, record)


if __name__ == "__main__":
    main()
