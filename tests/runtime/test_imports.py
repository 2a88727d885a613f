"""Decoding works where only numpy, onnxruntime, tokenizers and jinja2 are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

ALLOWED = {"numpy", "onnxruntime", "tokenizers", "jinja2", "markupsafe", "ingot", *sys.stdlib_module_names}
TOLERATED = {"huggingface_hub", "flatbuffers", "google", "packaging", "ml_dtypes"}  # their own affair, if they ask for them

class Wall:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in TOLERATED and not top.startswith("_"):
            raise ModuleNotFoundError(f"not installed here: {name}", name=name)

sys.meta_path.insert(0, Wall())
from ingot.runtime import artifact, bench, evaluate, generate
from ingot.runtime.session import Session
from ingot.runtime.tokenizer import Tokenizer

path = sys.argv[1]
session = Session.open(path, threads=1)
chat = [{"role": "user", "content": "the"}]
print(generate.generate(session, Tokenizer.open(path), ["the quick", chat]).results[0].finish_reason)
print(sorted({"torch", "transformers", "click", "rich", "onnx", "lark"} & set(sys.modules)))
"""


def run(script: str, *arguments: str) -> str:
    root = str(Path(__file__).parents[2])
    setup = f"import sys, runpy; sys.path.insert(0, {root!r}); runpy.run_path({root + '/conftest.py'!r})\n"
    done = subprocess.run([sys.executable, "-c", setup + script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decoding_needs_four_packages(toy: Path) -> None:
    reason, found = run(SCRIPT, str(toy)).splitlines()
    assert reason in ("stop", "length", "context")
    assert found == "[]"


def test_reading_a_manifest_needs_no_package_at_all(toy: Path) -> None:
    script = ("import sys\nfrom ingot.runtime.manifest import Manifest\nprint(Manifest.load(sys.argv[1]).kind)\n"
              "print(sorted({'numpy', 'onnxruntime', 'tokenizers', 'jinja2'} & set(sys.modules)))")
    assert run(script, str(toy)).splitlines() == ["decoder", "[]"]
