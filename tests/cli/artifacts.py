"""Artifacts with stages and receipts alone, made from text: what the commands that read dumps need."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from ingot.ir.text import parse_module, print_module
from ingot.passes.pipeline import parse_pipeline, run_pipeline
from ingot.runtime.manifest import Manifest


def staged(folder: Path, text: str, passes: str, *, details: dict[str, Any] | None = None) -> Path:
    """Run passes over a text and keep every stage as `ingot compile` does. details: for the receipt of the last pass."""
    module = parse_module(text)
    texts = [("import", print_module(module))]
    receipts = run_pipeline(module, parse_pipeline(passes), on_stage=lambda i, p, m, r: texts.append((p.name, print_module(m))))
    receipts[-1].details.update(details or {})
    (folder / "stages").mkdir(parents=True)
    stages = [f"stages/{i:02d}-{name}.ir.gz" for i, (name, _) in enumerate(texts)]
    for stage, (_, body) in zip(stages, texts, strict=True):
        (folder / stage).write_bytes(gzip.compress(body.encode(), mtime=0))
    (folder / "receipts.json").write_text(json.dumps([r.to_json() for r in receipts]))
    manifest = Manifest(target="ort", kind="other", inputs=(), outputs=(), pipeline=passes, source="tiny", stages=tuple(stages))
    manifest.save(folder)
    return folder
