"""The page: the stages of an artifact (or one dump) as one HTML file that needs nothing else.

It holds the text of all stages, each line once, a picture of each stage, what changed from stage to stage, receipts, and the
script that shows them. The script is in `templates/`, a file for each part of the page; nothing is fetched. Parts of the
address after `#` choose what is shown: `stage=3&open=model.layers.7&value=%25qkv_7`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.changes import SIGNS, Diff, diff
from ingot.dumps import is_artifact, read_receipts, stage_texts, write_text
from ingot.html.figures import bytes_by_dtype, bytes_by_layer, sites
from ingot.html.picture import Drawings, picture
from ingot.ir.module import Module
from ingot.ir.text import parse_module, print_module
from ingot.passes.pipeline import measure
from ingot.report import error_text

if TYPE_CHECKING:
    from ingot.passes.pipeline import Receipt

SCRIPTS = ("data", "strip", "text", "inspector", "graph", "plots", "main")
FACTS = ("kind", "architecture", "model_type", "dtype", "context", "vocab", "source")
"""Facts of a module that the head of the page shows."""


def write_page(path: Path | str, out: Path | str) -> int:
    """Write the page of an artifact or of an .ir file; returns its size in bytes. Raises IngotError as `render_page` does."""
    text = render_page(path)
    write_text(Path(out), text)
    return len(text.encode())


def render_page(path: Path | str) -> str:
    """The page of an artifact (all its stages) or of an .ir file (one stage), as HTML.

    Raises IngotError for what cannot be read or is not a dump.
    """
    path = Path(path)
    receipts: Sequence[Receipt | None] = [None, *read_receipts(path)] if is_artifact(path) else [None]
    book = _Book()
    for (name, text), receipt in zip(stage_texts(path), receipts, strict=False):
        book.add(name, text, receipt, where=f"{path}@{name}" if len(receipts) > 1 else str(path))
    module = book.module
    facts = " · ".join(f"{key.replace('_', ' ')} {module.meta[key]}" for key in FACTS if key in module.meta)
    return str(_template().render(title=module.name, facts=facts, data=book.to_json(), css=_file("page.css"),
                                  script="\n".join(_file(f"{name}.js") for name in SCRIPTS)))


class _Book:
    """The stages gathered so far. known: every distinct line of text and its number. module, body, lines: of the last
    stage, its text without the list of passes, and what is shown of it."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.drawings = Drawings()
        self.stages: list[dict[str, Any]] = []
        self.module = Module()
        self.body = ""
        self.lines: list[str] = []

    def add(self, name: str, text: str, receipt: Receipt | None, *, where: str) -> None:
        """Take in the text of a stage, read from `where`, with the receipt of its pass. Raises ParseError as parsing does."""
        history, _, body = text.partition("\n")
        stage: dict[str, Any] = {"name": name, "pass": receipt.stage if receipt is not None else ""}
        if self.stages and self.body == body:  # nothing but the list of passes changed
            last = len(self.stages) - 1
            stage |= {"like": self.stages[last].get("like", last), "changes": [], "marks": {}}
            self.lines[0] = history
        else:
            module = parse_module(text, filename=where)
            self.lines = print_module(module).removesuffix("\n").split("\n")
            ops, parameters, stored = measure(module)
            found = diff(self.module, module) if self.stages else None
            stage |= {"totals": {"ops": ops, "parameters": parameters, "bytes": stored},
                      "picture": picture(module, self.drawings), "layers": bytes_by_layer(module),
                      "dtypes": bytes_by_dtype(module), "changes": [] if found is None else _changes(found),
                      "marks": {} if found is None else _marks(found, self.lines)}
            self.module, self.body = module, body
        stage["text"] = self.runs(self.lines)
        if receipt is not None:
            stage["receipt"] = {"sites": receipt.sites, "seconds": receipt.seconds, "memory": receipt.memory,
                                "error": error_text(receipt.details), "measured": sites(receipt.details),
                                "details": _shown(receipt.details)}
        self.stages.append(stage)

    def runs(self, lines: Iterable[str]) -> list[int]:
        """Lines as numbers of known ones, in runs: first, how many, first, how many, ..."""
        out: list[int] = []
        for line in lines:
            number = self.known.setdefault(line, len(self.known))
            if out and out[-2] + out[-1] == number:
                out[-1] += 1
            else:
                out += [number, 1]
        return out

    def to_json(self) -> dict[str, Any]:
        return {"lines": list(self.known), "drawings": self.drawings.items, "stages": self.stages}


def _changes(found: Diff) -> list[list[str]]:
    return [[SIGNS[fold.first.kind], fold.first.subject, fold.first.line[2:], fold.times] for fold in found.folded()]


def _marks(found: Diff, lines: Sequence[str]) -> dict[str, list[int]]:
    """Lines (from 0) of what a stage added and changed, by sign: ops by their results, weights by their names."""
    place = {line.strip().removeprefix("const ").partition(" = " if line.startswith("    %") else " : ")[0]: n
             for n, line in enumerate(lines) if line.startswith(("    %", "  const "))}
    out: dict[str, list[int]] = {}
    for change in found.changes:
        key = change.text.partition(" = " if change.subject == "op" else " : ")[0]
        if change.kind != "removed" and change.subject in ("op", "weight") and key in place:
            out.setdefault(SIGNS[change.kind], []).append(place[key])
    return out


def _shown(details: Mapping[str, Any]) -> dict[str, str]:
    """Other entries of a receipt, as short texts."""
    return {key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            for key, value in details.items() if key not in ("sites", "error")}


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}  # keys stay in order
    return environment.from_string(_file("page.html"))


def _file(name: str) -> str:
    return (files("ingot.html") / "templates" / name).read_text(encoding="utf-8")
