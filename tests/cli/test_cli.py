"""The command line as a user meets it: verbs end to end on a tiny model, and one-screen errors for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ingot.cli import main
from tests.frontend.models import VOCAB, saved, tiny

Run = Callable[..., Result]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = saved(tiny("llama")[1], tmp_path_factory.mktemp("checkpoint"))
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "out"
    result = CliRunner().invoke(main, ["compile", str(checkpoint), "-o", str(out), "--recipe", "fp32"])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run() -> Run:
    def invoke(*args: object, input: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args], input=input)

    return invoke


def fails(result: Result, *parts: str) -> None:
    """Exit code 1, an error of at most ten lines that says `parts`, and no traceback."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 10
    for part in parts:
        assert part in result.output, result.output


# --- verbs ------------------------------------------------------------------------------------------------------------


def test_generate(run: Run, artifact: Path) -> None:
    plain = run("generate", artifact, "w5 w6 w7", "--max-new-tokens", 5, "--raw")
    assert plain.exit_code == 0, plain.output
    record = json.loads(run("generate", artifact, "w5 w6 w7", "--max-new-tokens", 5, "--raw", "--json").stdout)
    assert record["text"].strip() == plain.stdout.strip()
    assert record["prompt_tokens"] == 3
    assert 1 <= len(record["ids"]) <= 5
    sample = ("generate", artifact, "w5", "--temperature", 1, "--raw", "--max-new-tokens", 8, "--seed")
    seeded = [run(*sample, seed).stdout for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]


def test_eval_and_compare(run: Run, artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in np.random.default_rng(0).integers(3, VOCAB, 200)))
    record = json.loads(run("eval", artifact, "--text", text, "--context", 32, "--against", checkpoint, "--json").stdout)["all"]
    assert record["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert record["top1"]["mean"] == 1
    assert record["model"]["perplexity"] == pytest.approx(record["reference"]["perplexity"], rel=1e-4)
    np.savez(tmp_path / "chunks.npz", a=np.full((2, 16), 5), b=np.full((1, 16), 6))
    table = run("eval", artifact, "--text", tmp_path / "chunks.npz").stdout
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["a", "b", "all"]


def test_bench(run: Run, artifact: Path) -> None:
    record = json.loads(run("bench", artifact, "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 1, "--json").stdout)
    assert record["decode_per_second"] > 0
    assert (record["prompt_tokens"], record["new_tokens"]) == (8, 4)


def test_show_stages_receipts_and_statistics(run: Run, artifact: Path) -> None:
    traced = run("show", artifact, "--after", "import").stdout
    final = run("show", artifact).stdout
    assert "rsqrt" in traced
    assert "rsqrt" not in final
    assert "cache.write" in final
    receipts = json.loads(run("show", artifact, "--receipts", "--json").stdout)
    by_stage = {r["stage"]: r for r in receipts}
    assert by_stage["insert-kv-cache"]["sites"] == 2
    counted = json.loads(run("show", artifact, "--stats", "--json").stdout)
    assert counted["ops"]["attention"] == 2
    fails(run("show", artifact, "--after", "nothing"), "no stage nothing", "import")


def test_import_and_opt_are_text_in_text_out(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    dump = tmp_path / "a.ir"
    assert run("import", checkpoint, "-o", dump, "--no-weights").exit_code == 0
    once = run("opt", dump, "--passes", "canonicalize,cse").stdout
    assert run("opt", "-", "--passes", "canonicalize,cse", input=once).stdout.splitlines()[1:] == once.splitlines()[1:]
    assert once.startswith("# ingot ir v1, after: canonicalize,cse\n")


def test_passes_are_listed_and_described(run: Run) -> None:
    listed = run("passes").stdout
    for name in ("canonicalize", "insert-kv-cache", "quantize", "cpu-int4"):
        assert name in listed
    described = run("passes", "quantize").stdout
    assert "group" in described
    assert "lossy" in described


def test_export_is_plain_onnx(run: Run, artifact: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    assert run("export", artifact, "--format", "onnx", "-o", tmp_path / "onnx").exit_code == 0
    onnx.checker.check_model(str(tmp_path / "onnx/model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "logits"
    fails(run("export", artifact, "--format", "onnx", "-o", tmp_path / "onnx"), "--force")


def test_opset_only_has_no_foreign_domain(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    result = run("compile", checkpoint, "-o", tmp_path / "std", "--recipe", "cpu-int8", "--opset-only",
                 "--calib", calib(tmp_path))
    assert result.exit_code == 0, result.output
    model = onnx.load(tmp_path / "std/model.onnx", load_external_data=False)
    assert {n.domain for n in model.graph.node} == {""}
    assert run("generate", tmp_path / "std", "w5 w6", "--raw", "--max-new-tokens", 3).exit_code == 0


def calib(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", text=np.random.default_rng(0).integers(3, VOCAB, (2, 32)))
    return tmp_path / "calib.npz"


# --- bad input --------------------------------------------------------------------------------------------------------


def broken(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def test_truncated_weights(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    model = broken(checkpoint, tmp_path / "m")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    fails(run("compile", model, "-o", tmp_path / "out"), "truncated", "model.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_missing_shard(run: Run, tmp_path: Path) -> None:
    model = saved(tiny("llama")[1], tmp_path / "m", max_shard_size="20KB")
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(run("compile", model, "-o", tmp_path / "out"), shard.name)


def test_config_without_architecture(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    model = broken(checkpoint, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    del config["architectures"], config["model_type"]
    (model / "config.json").write_text(json.dumps(config))
    fails(run("compile", model, "-o", tmp_path / "out"), "config.json")


def test_nan_weights_are_located(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    import ingot

    model = broken(checkpoint, tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 7] = np.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="model") as caught:
        ingot.compile(model, tmp_path / "out", recipe="fp32")
    assert "model.safetensors: model.layers.1.mlp.down_proj.weight is nan at [3, 7]" in str(caught[0].message)


@pytest.mark.parametrize(("args", "parts"), [
    (["--passes", "canonicalise"], ["unknown pass canonicalise", "canonicalize"]),
    (["--passes", "quantize{group=33}"], ["group", "one of"]),
    (["--passes", "quantize{bits=4}"], ["no option bits", "format"]),
    (["--passes", "quantize{group=many}"], ["takes int"]),
    (["--passes", "quantize{"], ["cannot read"]),
    (["--passes", "insert-kv-cache,insert-kv-cache"], ["cannot follow"]),
    (["--passes", "insert-kv-cache"], ["put take-logits before insert-kv-cache"]),
    (["--recipe", "cpu-int5"], ["unknown recipe", "cpu-int4"]),
    (["--recipe", "fp32", "--passes", "dce"], ["not both"]),
    (["--adapter", "w" * 300], ["no such directory"]),
    (["--dump", "w" * 300], ["File name too long"]),
])
def test_impossible_requests(run: Run, checkpoint: Path, tmp_path: Path, args: list[str], parts: list[str]) -> None:
    fails(run("compile", checkpoint, "-o", tmp_path / "out", *args), *parts)
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept_without_force(run: Run, checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    fails(run("compile", checkpoint, "-o", out), "--force")
    fails(run("compile", checkpoint, "-o", out, "--force", "--passes", "take-logits,take-logits"), "cannot follow")
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert run("compile", checkpoint, "-o", out, "--force", "--recipe", "fp32").exit_code == 0


def test_unwritable_output(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(run("compile", checkpoint, "-o", tmp_path / "file/out"), "file")


def test_prompt_longer_than_the_context(run: Run, artifact: Path) -> None:
    fails(run("generate", artifact, "w5 " * 65, "--raw"), "65 tokens", "context is 64")


def test_not_an_artifact(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    fails(run("generate", checkpoint, "hello"), "not an ingot artifact", "ingot compile")
    fails(run("generate", tmp_path / "nowhere", "hello"), "no such")
    fails(run("compile", tmp_path / "nowhere", "-o", tmp_path / "out"), "no such file")


def test_usage_errors_exit_with_2(run: Run, artifact: Path) -> None:
    assert run("generate", artifact, "w5", "--top-p", "3").exit_code == 2
    assert run("nonsense").exit_code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_killed_half_way_leaves_the_old_artifact(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    script = ("import os, signal, sys\n"
              "from ingot.backends.onnx.weights import WeightFile\n"
              "WeightFile.add = lambda self, name, weight: os.kill(os.getpid(), signal.SIGKILL)\n"
              "import ingot\n"
              f"ingot.compile({str(checkpoint)!r}, {str(out)!r}, recipe='fp32', force=True)\n")
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert before == {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    result = CliRunner().invoke(main, ["compile", str(checkpoint), "-o", str(out), "--recipe", "fp32", "--force"])
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_help_needs_no_heavy_import() -> None:
    script = ("import sys\nfrom ingot.cli import main\n"
              "try: main(['--help'])\nexcept SystemExit: pass\n"
              "print(sorted(set(sys.modules) & {'numpy', 'torch', 'onnx', 'onnxruntime', 'transformers', 'lark', 'rich'}))")
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
