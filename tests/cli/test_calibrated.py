"""Compiling with calibration text, end to end: what may be given, what is wrong with it, what it shows, and going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ingot.cli import main
from ingot.errors import GenerateError
from tests.cli.test_cli import ENVIRONMENT, fails
from tests.frontend.models import VOCAB, saved, tiny

Run = Callable[..., Result]
TRACE = "clean,recognize,clean,fuse"
GPTQ = "quantize{format=int4 group=16 method=gptq}"
PIPELINE = f"{TRACE},{GPTQ},take-logits,insert-kv-cache,clean"
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama whose tokens are the words w2 to w90, `user` and <unk>, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = saved(tiny("llama")[1], tmp_path_factory.mktemp("checkpoint"))
    words = {"<unk>": 0, "user": 1, **{f"w{i}": i for i in range(2, 91)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "<unk>", "chat_template": CHAT}))
    return folder


@pytest.fixture
def run() -> Run:
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def words(count: int, *, seed: int = 0, start: int = 2) -> str:
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(start, 91, count))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(words(600))
    return file


def receipt_of(artifact: Path, name: str) -> dict[str, Any]:
    found = json.loads((artifact / "receipts.json").read_text())
    return next(r["details"] for r in found if r["stage"].startswith(name))


# --- what may be given ------------------------------------------------------------------------------------------------


def test_files_of_all_kinds_take_turns(checkpoint: Path, tmp_path: Path) -> None:
    from ingot.calibration import calibration_chunks
    from ingot.runtime.tokenizer import Tokenizer

    encode = Tokenizer.open(checkpoint).encode
    (tmp_path / "a.txt").write_text(words(40, seed=1))
    lines = [{"messages": [{"role": "user", "content": words(9, seed=2)}]}, {"text": words(10, seed=3)}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    np.savez(tmp_path / "c.npz", x=np.full((1, 12), 7), y=np.full((1, 5), 8))
    files = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.npz")]
    a, b = encode(words(40, seed=1)), encode(f"user {words(9, seed=2)} {words(10, seed=3)}")
    made = calibration_chunks(checkpoint, text=files, context=10, tokens=61)
    expected = [a[:10], b[:10], [7] * 10, [8] * 5, a[10:20], b[10:20], a[20:26]]
    assert [ids.tolist() for ids in made] == [[ids] for ids in expected]


def test_text_from_the_command_line(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(words(200, seed=5)))
    result = run("compile", checkpoint, "-o", tmp_path / "out", "--passes", PIPELINE, "--calib", text, "--calib",
                 tmp_path / "more.jsonl", "--calib-tokens", 320, "--calib-context", 32)
    assert result.exit_code == 0, result.output
    details = receipt_of(tmp_path / "out", "quantize")
    assert details["calibration"] == {"text": "words.txt, more.jsonl", "tokens": 320, "sequences": 10}
    assert 0 < details["sites"][0]["error"] < 1
    assert len(details["sites"]) == details["weights"]
    assert not [p.name for p in tmp_path.iterdir() if "journal" in p.name]


def test_without_text_the_sample_is_used_and_said(checkpoint: Path, tmp_path: Path) -> None:
    import ingot

    with pytest.warns(UserWarning, match="the sample that comes with ingot: give text"):
        made = ingot.compile(checkpoint, tmp_path / "out", passes=f"{PIPELINE},clean".replace("cache", "cache{dtype=int8}"))
    for name in ("quantize", "insert-kv-cache"):
        assert receipt_of(tmp_path / "out", name)["calibration"]["text"] == "the sample that comes with ingot"
    assert made.evaluation is not None
    assert made.evaluation["text"] == "the text for measuring that comes with ingot"


# --- what is wrong with it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("none.txt", None, ["none.txt", "no such file"]),
    ("empty.txt", "  \n", ["empty.txt", "the text is empty"]),
    ("short.txt", "w5", ["1 tokens; at least 2"]),
    ("other.txt", "der Fuchs und der Hund", ["100% of the text is unknown to the tokenizer", "is this the tokenizer"]),
    ("a.jsonl", '{"text": "w5 w6"}\n{"txt": "w5"}', ["a.jsonl:2", "holds no text"]),
    ("a.jsonl", '{"text": "w5 w6"}\n{"text": "w5', ["a.jsonl:2", "not JSON"]),
])
def test_text_that_cannot_be_used(checkpoint: Path, tmp_path: Path, name: str, content: str | None, parts: list[str]) -> None:
    from ingot.calibration import calibration_chunks

    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(GenerateError) as caught:
        calibration_chunks(checkpoint, text=tmp_path / name)
    for part in parts:
        assert part in str(caught.value)


def test_it_is_said_before_any_work(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w5 w6"}\n{"txt": "w5"}')
    command = ("compile", checkpoint, "-o", tmp_path / "out", "--passes", PIPELINE)
    fails(run(*command, "--calib", text, "--calib", tmp_path / "a.jsonl"), "a.jsonl:2", "holds no text", "write {")
    fails(run(*command, "--calib", text, "--eval", tmp_path / "none.txt"), "none.txt: there is no such file")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_tokens_of_another_model(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", x=np.full((2, 16), VOCAB))
    command = ("compile", checkpoint, "-o", tmp_path / "out", "--passes", PIPELINE)
    fails(run(*command, "--calib", tmp_path / "ids.npz"), "ids.npz: there is token id 96, the model knows 96 tokens",
          "another model's tokenizer")
    fails(run(*command, "--calib", text, "--eval", tmp_path / "ids.npz"), "ids.npz: there is token id 96")


def test_text_that_nothing_reads(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    import ingot

    with pytest.warns(UserWarning, match="no pass of this pipeline reads calibration text"):
        made = ingot.compile(checkpoint, tmp_path / "out", recipe="fp32", calib=text)
    assert made.evaluation is None  # nothing is lost


# --- what it shows ----------------------------------------------------------------------------------------------------


def changed(checkpoint: Path, folder: Path, name: str, change: Callable[[np.ndarray], None]) -> Path:
    """The checkpoint with one tensor changed in place."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_layer_that_overflows_is_named(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    def huge(w: np.ndarray) -> None:
        w[:] = 3e38

    model = changed(checkpoint, tmp_path / "m", "model.layers.1.post_attention_layernorm.weight", huge)
    fails(run("compile", model, "-o", tmp_path / "out", "--passes", PIPELINE, "--calib", text),
          "@model.layers.1.mlp.", "the second moments of its inputs are not finite", "overflow")
    fails(run("compile", model, "-o", tmp_path / "out", "--passes", f"{TRACE},smooth,quantize", "--calib", text), "is not finite")


def test_dead_channels_are_counted_by_layer(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    def silent(w: np.ndarray) -> None:
        w[[3, 7, 20]] = 0

    model = changed(checkpoint, tmp_path / "m", "model.layers.1.input_layernorm.weight", silent)
    result = run("compile", model, "-o", tmp_path / "out", "--passes", PIPELINE, "--calib", text, "--no-eval")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out/evaluation.json").exists()
    assert "against the original" not in result.stderr + run("show", tmp_path / "out", "--receipts").stdout
    details = receipt_of(tmp_path / "out", "quantize")
    assert details["dead_inputs"] == 3
    [(name, count)] = details["dead"].items()
    assert ("layers.1" in name, count) == (True, 3)


def test_a_weight_that_loses_more_than_zeros_is_an_error(run: Run, checkpoint: Path, text: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.passes.quantization import sequential

    real, calls = sequential.gptq, []

    def broken(w: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        calls.append(w)
        return real(-w if len(calls) == 3 else w, *args, **kwargs)

    monkeypatch.setattr(sequential, "gptq", broken)
    fails(run("compile", checkpoint, "-o", tmp_path / "out", "--passes", PIPELINE, "--calib", text),
          "@model.layers.0.mlp", "of what it computes", "more bits, or skip it")


# --- what it cost -----------------------------------------------------------------------------------------------------


def test_lossy_recipes_are_measured(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """On files, as domains; printed, kept in the artifact, shown with the receipts; the same as a later eval."""
    (tmp_path / "a.txt").write_text(words(300, seed=8))
    (tmp_path / "b.jsonl").write_text(json.dumps(words(300, seed=9)))
    files = ["--eval", tmp_path / "a.txt", "--eval", tmp_path / "b.jsonl"]
    result = run("compile", checkpoint, "-o", tmp_path / "out", "--recipe", "cpu-int4", "--calib", text, *files)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert record["text"] == "a.txt, b.jsonl"
    assert record["tokens"] == 2 * 256
    assert list(record["results"]) == ["a", "b", "all"]
    assert record["results"]["all"]["kl"]["mean"] > 0
    shown = run("show", tmp_path / "out", "--receipts").stdout
    lines = shown.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("against the original on a.txt, b.jsonl, 512 tokens"))
    assert lines[at + 1].split() == ["domain", "chunks", "perplexity", "95", "%", "original", "change", "95", "%", "KL", "(nats)",
                                     "top-1", "agrees"]
    assert "\n".join(lines[at:]) in result.stderr
    later = run("eval", tmp_path / "out", "--text", tmp_path / "a.txt", "--text", tmp_path / "b.jsonl", "--reference", checkpoint,
                "--context", 64, "--json")
    again = json.loads(later.stdout)
    assert again["a"]["kl"]["mean"] == pytest.approx(record["results"]["a"]["kl"]["mean"], rel=1e-3)
    assert again["all"]["top1"] == record["results"]["all"]["top1"]


def test_the_original_is_the_model_before_anything_is_lost(checkpoint: Path, tmp_path: Path) -> None:
    """What merging an adapter changes is no loss."""
    import ingot
    from tests.passes.adapters import low_rank, write_adapter

    shapes = {f"model.layers.{i}.self_attn.q_proj": (32, 32) for i in (0, 1)}
    write_adapter(tmp_path / "adapter", low_rank(shapes, seed=0, size=2.0))
    (tmp_path / "t.txt").write_text(words(200, seed=8))
    made = ingot.compile(checkpoint, tmp_path / "out", recipe="cpu-int8", adapter=tmp_path / "adapter", calib=tmp_path / "t.txt",
                         evaluation=tmp_path / "t.txt")
    assert made.evaluation is not None
    merged = made.evaluation["results"]["all"]
    plain = ingot.evaluate(tmp_path / "out", tmp_path / "t.txt", against=checkpoint, context=64)["all"].to_json()
    assert merged["kl"]["mean"] < 0.1 * plain["kl"]["mean"]


def test_a_damaged_evaluation(run: Run, tmp_path: Path) -> None:
    from tests.cli.artifacts import staged

    folder = staged(tmp_path / "out", (Path(__file__).parents[2] / "benchmarks/fuzz/decoder.ir").read_text(), "clean")
    all_but_a_number = {"text": "x", "tokens": 1, "results": {"all": {"chunks": 1, "interval95": None, "perplexity": "x"}}}
    for content in ("{", "[]", '{"results": {"all": {}}}', json.dumps(all_but_a_number)):
        (folder / "evaluation.json").write_text(content)
        fails(run("show", folder, "--receipts"), "the evaluation is damaged")


# --- going on ---------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """All files whose bytes follow from the command alone: receipts hold seconds, and the manifest their size."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("receipts.json", "ingot.json")}


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_killed_while_it_calibrates_it_goes_on(run: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    command = ["compile", str(checkpoint), "--passes", PIPELINE, "--calib", str(text), "--calib-context", "64", "-o"]
    assert run(*command, tmp_path / "whole").exit_code == 0
    script = ("import os, signal, sys\n"
              "from ingot.passes.journal import Section\n"
              "write = Section.write\n"
              "def killed(self, name, *rest):\n"
              "    write(self, name, *rest)\n"
              "    if len(list(self.folder.glob('*.npz'))) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
              "Section.write = killed\n"
              "from ingot.cli import main\n"
              "main(sys.argv[1:])\n")
    done = subprocess.run([sys.executable, "-c", script, *command, str(tmp_path / "out")], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    result = run(*command, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert receipt_of(tmp_path / "out", "quantize")["resumed"] == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert "model.onnx" in contents(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
