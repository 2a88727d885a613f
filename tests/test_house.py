"""The rules of the house, checked: packages, layers, sizes, imports, and texts that speak of the product alone."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"ir": ROOT / "ir", "frontend": ROOT / "frontend", "passes": ROOT / "passes", "backends": ROOT / "backends",
          "runtime": ROOT / "runtime", "ingot": ROOT / "src/ingot"}
MAY_IMPORT = {
    "ir": {"errors", "ir"},
    "frontend": {"errors", "importing", "ir", "frontend"},
    "passes": {"errors", "importing", "ir", "passes"},
    "backends": {"errors", "ir", "backends"},
    "runtime": {"errors", "runtime"},
}
"""What each layer may import of ingot; src/ingot stands above and may import all."""
LATE = {("passes", "ingot.backends.torch"): "calibration runs the graph through the torch executor"}
"""Imports across layers inside a function, each with its reason."""
HEAVY = {"torch", "transformers", "triton", "onnx", "onnxruntime", "safetensors", "gguf", "sympy", "hypothesis"}
LIGHT = {"ir": {"lark", "ml_dtypes", "numpy"}, "passes": {"ml_dtypes", "numpy"},
         "runtime": {"jinja2", "numpy", "onnxruntime", "tokenizers"}}
"""What these layers may import from outside the standard library where a module is loaded."""
LONGEST = 450


def python_files(folder: Path) -> Iterator[Path]:
    """Python files below a folder; links (the folders linked into src/ingot) and hidden folders are left out."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith(".") or path.name in ("__pycache__", "build", "dist"):
            continue
        if path.is_dir():
            yield from python_files(path)
        elif path.suffix == ".py":
            yield path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, late) for every import of a file; late ones stand in a function. Those for type checkers are left out."""
    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"ingot.{a.name}" if module == "ingot" else module, late) for a in node.names)
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), False)


def all_files() -> list[Path]:
    return [path for path in python_files(ROOT) if path.relative_to(ROOT).parts[0] != "build"]


def test_every_package_is_shipped() -> None:
    """A folder that is missing from `packages` would be silently absent from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(project["tool"]["setuptools"]["packages"])
    found = set()
    for layer, folder in LAYERS.items():
        for path in python_files(folder):
            parts = path.parent.relative_to(folder).parts
            found.add(".".join(["ingot", *([] if layer == "ingot" else [layer]), *parts]))
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"
    assert found == shipped


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layers(layer: str) -> None:
    wrong = []
    for path in python_files(LAYERS[layer]):
        for module, late in imports(path):
            top, *rest = module.split(".")
            if top != "ingot" or (rest and rest[0] in MAY_IMPORT[layer]):
                continue
            if not (late and any(layer == who and module.startswith(what) for who, what in LATE)):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("layer", LIGHT)
def test_light_layers_load_without_heavy_packages(layer: str) -> None:
    import sys

    wrong = [f"{path.relative_to(ROOT)} imports {module}" for path in python_files(LAYERS[layer])
             for module, late in imports(path) if not late and module.split(".")[0] not in
             {"ingot", "__future__", *sys.stdlib_module_names, *LIGHT[layer]}]
    assert not wrong


def test_the_api_and_the_command_line_start_without_heavy_packages() -> None:
    wrong = [f"{path.name} imports {module}" for path in LAYERS["ingot"].glob("*.py")
             for module, late in imports(path) if not late and module.split(".")[0] in HEAVY]
    assert not wrong


def test_imports_are_absolute_and_of_one_copy() -> None:
    """`import ir` in a checkout would be a second copy of `ingot.ir`."""
    bare = {"ir", "frontend", "passes", "backends", "runtime", "src", "."}
    wrong = [f"{path.relative_to(ROOT)} imports {module}" for path in all_files() for module, _ in imports(path)
             if module.split(".")[0] in bare or module.startswith(".")]
    assert not wrong


def test_no_file_is_too_long() -> None:
    long = {str(p.relative_to(ROOT)): n for p in all_files() if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long, f"longer than {LONGEST} lines: split by concept"


def test_every_file_says_what_it_is() -> None:
    """A docstring on every module that ships."""
    shipped = [path for folder in LAYERS.values() for path in python_files(folder)]
    silent = [str(path.relative_to(ROOT)) for path in shipped if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


_MARKS = ("skip", "skipif", "xfail")


def test_every_skip_has_a_reason() -> None:
    """pytest.skip, skipif, xfail and importorskip say why, in words."""
    silent = []
    for path in python_files(ROOT / "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name not in ("pytest.skip", "pytest.xfail", "pytest.importorskip", *(f"pytest.mark.{m}" for m in _MARKS)):
                continue
            reasons = [k.value for k in node.keywords if k.arg == "reason"]
            if name in ("pytest.skip", "pytest.xfail", "pytest.mark.skip"):
                reasons += node.args[:1]
            if not any(not isinstance(r, ast.Constant) or len(str(r.value).split()) > 2 for r in reasons):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(rf"pytest\.mark\.({'|'.join(_MARKS)})\s*$", line):
                silent.append(f"{path.relative_to(ROOT)}:{number}")
    assert not silent


TEXTS = {".py", ".md", ".toml", ".ir", ".lark", ".txt", ".sh", ".yml", ".json", ""}
FOREIGN = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/|\bTODO\b|\bFIXME\b|\bXXX\b")
"""Paths of somebody's machine, and notes to oneself."""


def test_texts_speak_of_the_product_alone() -> None:
    wrong = []
    for folder in [ROOT, *(p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")), ROOT / ".ci"]:
        paths = folder.iterdir() if folder == ROOT else folder.rglob("*") if folder.exists() else ()
        for path in paths:
            if not path.is_file() or path.suffix not in TEXTS or "__pycache__" in path.parts or path == Path(__file__):
                continue
            if path.stat().st_size > 1_000_000 or any(part.endswith(".egg-info") for part in path.parts):
                continue
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if FOREIGN.search(line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong
