"""What a model of Llama-7B's shape costs: import without weights, text passes, and compiling a synthetic bf16 checkpoint.

    python benchmarks/llama_7b.py import            trace the configuration (no weights)
    python benchmarks/llama_7b.py opt               parse, canonicalize, print its dump
    python benchmarks/llama_7b.py compile DIR       write random bf16 weights into DIR (13.5 GB) and compile them to int4

Every stage runs in a process of its own, whose peak memory is reported.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import ml_dtypes
import numpy as np

from ingot.runtime.manifest import Manifest

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
          "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000,
          "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
          "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}


def measured(*command: str) -> dict[str, float]:
    """Wall seconds and peak resident bytes of a command."""
    start = time.perf_counter()
    script = ("import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); "
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr); sys.exit(r.returncode)")
    done = subprocess.run([sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"seconds": round(time.perf_counter() - start, 2), "peak_bytes": int(done.stderr.strip().splitlines()[-1])}


def write_checkpoint(folder: Path) -> None:
    """Random bf16 weights in shards of one layer each."""
    rng = np.random.default_rng(0)
    d, f, v = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    layer = {f"self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f),
              "input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    shards = [{"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)}]
    shards += [{f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
               for i in range(CONFIG["num_hidden_layers"])]
    index: dict[str, str] = {}
    from safetensors.numpy import save_file

    for n, shard in enumerate(shards):
        name = f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
                   for key, shape in shard.items()}
        save_file(tensors, folder / name)
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@click.command()
@click.argument("stage", type=click.Choice(["import", "opt", "compile"]))
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--group", default=32, show_default=True)
def main(stage: str, folder: Path | None, group: int) -> None:
    ingot = [sys.executable, "-m", "ingot"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        model = work / "llama-7b"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG))
        if stage in ("import", "opt"):
            result = measured(*ingot, "import", str(model), "--no-weights", "-o", str(work / "a.ir"))
            if stage == "opt":
                result = measured(*ingot, "opt", str(work / "a.ir"), "--passes", "canonicalize", "-o", str(work / "b.ir"))
                again = measured(*ingot, "opt", str(work / "b.ir"), "--passes", "canonicalize", "-o", str(work / "c.ir"))
                result |= {"seconds_again": again["seconds"], "bytes": (work / "b.ir").stat().st_size}
        else:
            write_checkpoint(model)
            pipeline = (f"clean,recognize,clean,take-logits,"
                        f"insert-kv-cache,fuse,quantize{{format=int4 group={group}}},dce")
            result = measured(*ingot, "compile", str(model), "-o", str(work / "out"), "--passes", pipeline)
            size = sum(Manifest.load(work / "out").files.values())
            result |= {"artifact_bytes": size, "arithmetic_bytes": arithmetic_bytes(group)}
            result["ratio"] = size / result["arithmetic_bytes"]
    click.echo(json.dumps(result, indent=1))


def arithmetic_bytes(group: int) -> float:
    """Linears in 4 bits with an f32 scale and a 4-bit zero point per group, the embedding and norms in f32."""
    d, f, v, layers = (CONFIG[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    linears = layers * (4 * d * d + 3 * d * f) + v * d
    return linears * (4 + 36 / group) / 8 + 4 * (v * d + d * (2 * layers + 1))


if __name__ == "__main__":
    main()
