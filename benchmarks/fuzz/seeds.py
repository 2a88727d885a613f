"""What fuzzing starts from: small whole files of every format, made by the code that writes them."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ingot.ir.text import parse_module
from ingot.ir.weights import dense_text
from ingot.passes.recipes import RECIPES
from ingot.testing import examples

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests/passes/cases"
DECODER = Path(__file__).parent / "decoder.ir"
PIPELINE = "fuse,take-logits,insert-kv-cache{dtype=int8},quantize{format=int4 group=32 symmetric},canonicalize"


def programs() -> list[bytes]:
    """Modules as text: every golden case of the passes with its pipeline, and every op."""
    found = []
    for path in sorted(CASES.glob("*.ir")):
        for block in path.read_text(encoding="utf-8").split("# ---\n"):
            found += [part.split("# error: ")[0] for part in block.split("# =>\n") if "module" in part]
    return [text.encode() for text in (*found, *(e.text for e in examples()), DECODER.read_text(encoding="utf-8"))]


def pipelines() -> list[bytes]:
    """Pipeline texts: those of the golden cases and the recipes."""
    cases = re.findall(r"^# run: (.*)$", "\n".join(p.read_text(encoding="utf-8") for p in sorted(CASES.glob("*.ir"))), re.M)
    return [text.encode() for text in dict.fromkeys([*cases, *(text for text, _ in RECIPES.values())])]


def safetensors() -> list[bytes]:
    """Files with tensors of several element types and shapes."""
    return [tensors({"w": ("F32", [2, 3], 24), "b": ("BF16", [2], 4)}),
            tensors({"empty": ("F16", [0, 4], 0), "scalar": ("I64", [], 8), "flags": ("BOOL", [3], 3),
                     "low": ("F8_E4M3", [2, 2], 4)})]


def tensors(table: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: element type, shape and bytes by key."""
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, (dtype, shape, size) in table.items():
        head[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def adapter_tensors() -> list[bytes]:
    """Factors for two modules, one with a pattern of its own in the configuration, and a module saved as a whole."""
    name = "base_model.model.model.layers.0.mlp."
    return [tensors({f"{name}up_proj.lora_A.weight": ("F32", [2, 4], 32), f"{name}up_proj.lora_B.weight": ("F32", [3, 2], 24),
                     f"{name}down_proj.lora_A.weight": ("F32", [1, 3], 12), f"{name}down_proj.lora_B.weight": ("F32", [4, 1], 16),
                     "base_model.model.lm_head.weight": ("F32", [8, 4], 128)})]


def adapter_configurations() -> list[bytes]:
    return [json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj", "down_proj"], "bias": "none",
                        "rank_pattern": {"down_proj": 1}, "alpha_pattern": {".*down.*": 1.5}, "modules_to_save": ["lm_head"],
                        "layers_to_transform": [0], "layers_pattern": "layers", "use_rslora": True}).encode()]


def indices() -> list[bytes]:
    """Shard indices over a.safetensors and b.safetensors, which hold w, b and empty, scalar, flags, low."""
    places = {"w": "a.safetensors", "b": "a.safetensors", "flags": "b.safetensors"}
    return [json.dumps({"metadata": {"total_size": 31}, "weight_map": places}).encode()]


def configurations() -> list[bytes]:
    """config.json of tiny models of several architectures."""
    import transformers

    common = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "max_position_embeddings": 32}
    special = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    made = []
    for name, more in (("Llama", {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "linear", "factor": 2.0,
                                                                              "rope_theta": 1e4}}),
                       ("Gemma2", {"num_key_value_heads": 1, "head_dim": 8, "layer_types": ["sliding_attention"]}),
                       ("Mixtral", {"num_local_experts": 2, "num_key_value_heads": 1}), ("Bert", {}),
                       ("ModernBert", special)):
        config = getattr(transformers, f"{name}Config")(**(common | more))
        config.architectures = [name + ("ForCausalLM" if name in ("Llama", "Gemma2", "Mixtral") else "Model")]
        made.append(config.to_json_string().encode())
    return made


def gguf_files() -> list[bytes]:
    """A llama of one layer, in float32 and with 8-bit blocks."""
    import tempfile

    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    rng = np.random.default_rng(0)
    shapes = {"token_embd": (8, 32), "output_norm": (32,), "output": (8, 32), **{f"blk.0.{name}": shape for name, shape in {
        "attn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
        "ffn_norm": (32,), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}.items()}}
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for quantized in (False, True):
            path = Path(folder) / f"{quantized}.gguf"
            writer = GGUFWriter(path, "llama")
            for key, number in {"context_length": 32, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
                                "attention.head_count": 2, "attention.head_count_kv": 1, "vocab_size": 8}.items():
                writer.add_uint32(f"llama.{key}", number)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_rope_freq_base(1e4)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", "c", "d"])
            writer.add_token_merges(["a b"])
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            for name, shape in shapes.items():
                array = rng.normal(size=shape).astype(np.float32)
                if quantized and len(shape) == 2:
                    kind = GGMLQuantizationType.Q8_0
                    writer.add_tensor(f"{name}.weight", quantize(array, kind), raw_dtype=kind)
                else:
                    writer.add_tensor(f"{name}.weight", array)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            made.append(path.read_bytes())
    return made


def chunk_files() -> list[bytes]:
    """.npz files of token chunks, with several domains and integer types."""
    made = []
    domains: list[dict[str, Any]] = [
        {"prose": np.arange(12).reshape(2, 6), "code": np.arange(8, dtype=np.int32).reshape(2, 4)},
        {"a": np.ones((1, 3), np.uint16)}]
    for arrays in domains:
        file = io.BytesIO()
        np.savez(file, **arrays)
        made.append(file.getvalue())
    return made


REPRO = """module @slice {
  dim S in 1..4
  const @w : f32[2] = unknown()
  func @forward(%x: f32[S, 2]) -> (f32[S, 2]) {
    %y = mul(%x, @w) : f32[S, 2]
    return %y
  }
}
"""
"""The slice of a repro, before and after."""


def repro_arrays() -> list[bytes]:
    file = io.BytesIO()
    weight: Any = np.ones(2, np.float32)
    np.savez(file, **{"input/x": np.ones((3, 2)), "before/w": weight, "after/w": 2 * weight})
    return [file.getvalue()]


def repro_records() -> list[bytes]:
    trials: list[dict[str, object]] = [{"contract": "exact", "rtol": 1e-9}, {"contract": "lossy"},
                                       {"contract": "cache", "batch": "B", "length": "S", "rtol": 1e-9}]
    return [json.dumps({"version": 1, "pass": "clean", "value": "%y", "replays": False, **trial}).encode() for trial in trials]


def texts() -> list[bytes]:
    return ["abba abc.\nÜber 東京 🙂".encode(), b"ab", b"\xff\xfe", b""]


def json_lines() -> list[bytes]:
    """Texts and conversations, one to a line."""
    chat = {"messages": [{"role": "user", "content": "abba"}, {"role": "assistant", "content": "abc \ud83d\ude42"}]}
    return [b'{"text": "abba abc."}\n"ab c"\n', json.dumps(chat).encode() + b"\r\n\n", b'"\\ud800 ab"\n', b"[]"]


def evaluations() -> list[bytes]:
    """What lossy passes cost: two domains and all, and one measured alone."""
    from ingot.runtime.evaluate import measure

    def logits(ids: Any) -> Any:
        return np.eye(8, dtype=np.float32)[ids]

    chunks = np.arange(12).reshape(4, 3) % 8
    records = [measure(logits, {"a": chunks[:2], "b": chunks[2:]}, reference=lambda ids: 2 * logits(ids)),
               measure(logits, {"a": chunks[:1]})]
    return [json.dumps({"text": "a.txt", "tokens": 12, "results": {name: r.to_json() for name, r in found.items()}}).encode()
            for found in records]


def decoder_text(*, seed: int = 0) -> str:
    """decoder.ir with random numbers for its weights."""
    text = DECODER.read_text(encoding="utf-8")
    rng = np.random.default_rng(seed)
    for const in parse_module(text).consts.values():
        numbers = rng.integers(-8, 9, const.type.shape) / np.float32(8)
        text = text.replace(f'unknown(key="{const.name}")', f"dense({dense_text(numbers)})")
    return text


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                      "special": True} for i, t in enumerate(("<s>", "</s>"))],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                                {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": {t: i for i, t in enumerate(("<s>", "</s>", "a", "b", "c", ".", "ab", "Ġ", "abb"))},
              "merges": [["a", "b"], ["ab", "b"]]}}
"""tokenizer.json of a byte-level BPE."""

TOKENIZER_CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}{% endif %}")}

GENERATION_CONFIG = {"eos_token_id": [1, 3], "temperature": 0.7, "top_k": 5, "top_p": 0.9, "do_sample": True,
                     "repetition_penalty": 1.1}


def artifact(folder: Path) -> Path:
    """A whole small artifact in `folder`: int4 weights, int8 cache, a graph for prompts, tokenizer, stages and receipts."""
    from ingot.backends.onnx import contrib_int8, weights
    from ingot.compiler import compile

    (folder / "tiny.ir").write_text(decoder_text(), encoding="utf-8")
    (folder / "chunks.npz").write_bytes(chunk_files()[0])
    out = folder / "artifact"
    with patch.object(contrib_int8, "LEAST_BYTES", 1), patch.object(weights, "INLINE", 33):  # small as the weights are
        compile(folder / "tiny.ir", out, passes=PIPELINE, calib=folder / "chunks.npz", force=True)
    manifest = json.loads((out / "ingot.json").read_text(encoding="utf-8"))
    for name, content in {"tokenizer.json": TOKENIZER, "tokenizer_config.json": TOKENIZER_CONFIG,
                          "generation_config.json": GENERATION_CONFIG}.items():
        (out / name).write_text(json.dumps(content), encoding="utf-8")
        manifest["files"][name] = (out / name).stat().st_size
    (out / "ingot.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def stages() -> list[bytes]:
    """A stage of an artifact: compressed text."""
    return [gzip.compress(DECODER.read_bytes(), mtime=0)]
