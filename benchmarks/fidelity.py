"""The fp32 artifact of a decoder against transformers: greedy tokens, logits, perplexity.

    python benchmarks/fidelity.py CHECKPOINT ARTIFACT --text chunks.npz [--json FILE]
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ingot.runtime.evaluate import load_chunks, perplexity
from ingot.runtime.session import Session

PROMPTS = ("The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at",
           "Dear Sir or Madam,",
           "The three laws of motion are", "In 1969, the first", "A recipe for bread: take")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, help="An .npz of token chunks by domain.")
@click.option("--chunks", type=int, help="Chunks per domain [default: all].")
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(checkpoint: Path, artifact: Path, text: Path, chunks: int | None, new_tokens: int, out: Path | None) -> None:
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    session = Session.open(artifact)
    same, worst = 0, 0.0
    for prompt in PROMPTS:
        ids = np.asarray(tokenizer(prompt).input_ids, np.int64)
        wanted = model.generate(torch.from_numpy(ids)[None], max_new_tokens=new_tokens, do_sample=False, use_cache=True,
                                eos_token_id=None, pad_token_id=0)[0, len(ids):].numpy()
        logits = session.prefill([ids])
        got = [int(logits[0].argmax())]
        while len(got) < new_tokens:
            got.append(int(session.step(np.array([got[-1]]))[0].argmax()))
        same += got == wanted.tolist()
        full = np.concatenate([ids, wanted])
        expected = model(torch.from_numpy(full)[None]).logits[0].numpy()
        worst = max(worst, float(np.abs(session.logits(full[None])[0] - expected).max()))
    domains = {name: c[:chunks] for name, c in load_chunks(text).items()}
    every = np.concatenate(list(domains.values()))
    mine = perplexity(session.logits, every).perplexity
    theirs = perplexity(lambda c: model(torch.from_numpy(c)).logits.numpy(), every).perplexity
    record = {"prompts": len(PROMPTS), "same_greedy": same, "new_tokens": new_tokens, "max_logit_difference": worst,
              "perplexity": mine, "perplexity_transformers": theirs, "chunks": len(every)}
    click.echo(json.dumps(record, indent=1))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
