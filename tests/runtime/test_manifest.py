"""Manifests round-trip, and everything that is not a whole artifact is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ingot.errors import ArtifactError
from ingot.runtime.manifest import Manifest, Port


def test_a_manifest_round_trips_with_keys_it_does_not_know(toy_manifest: Callable[..., Manifest]) -> None:
    manifest = toy_manifest(recipe="cpu-int4", pipeline="canonicalize", stages=("stages/00-import.ir",),
                            files={"model.onnx": 10}, extra={"someday": {"a": 1}})
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_states_pair_an_input_with_the_output_that_updates_it(toy_manifest: Callable[..., Manifest]) -> None:
    pairs = [(taken.name, given.name) for taken, given in toy_manifest().states]
    assert pairs == [("kc0", "kc0_out"), ("vc0", "vc0_out"), ("kc1", "kc1_out"), ("vc1", "vc1_out")]


def test_loading_the_toy(toy: Path) -> None:
    manifest = Manifest.load(toy)
    assert set(manifest.files) == {path.name for path in toy.iterdir()} - {"ingot.json"}
    assert manifest.files["weights.bin"] == (toy / "weights.bin").stat().st_size


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such artifact"):
        Manifest.load(tmp_path / "nothing")


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"this is a file\n  compile it first: ingot compile .*model.gguf -o OUT"):
        Manifest.load(file)


def test_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"not an ingot artifact \(it has no ingot.json\)\n  compile it first"):
        Manifest.load(tmp_path)


def test_truncated_weights(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    path = write_toy(tmp_path / "out")
    weights = path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=r"weights.bin is truncated: [\d,]+ bytes, the manifest says [\d,]+"):
        Manifest.load(path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"weights.bin is missing\n  the artifact was copied"):
        Manifest.load(path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "cannot be read"),
    ("[]", "not an ingot manifest"),
    ('{"ingot": 2}', r"artifact format 2 is newer than this ingot understands \(1\)"),
    ('{"ingot": 1}', "the manifest is damaged: there is no target, kind, inputs, outputs"),
    ('{"ingot": 1, "inputs": [{}], "outputs": []}', "inputs: there is no name, dtype, dims"),
    ('{"ingot": 1, "inputs": [], "outputs": []}', "damaged: there is no target, kind"),
    ('{"ingot": 1, "inputs": [], "outputs": [], "target": "x", "kind": "other"}', "unknown target 'x'; there are: ort"),
    ('{"ingot": 1, "inputs": [], "outputs": [], "target": "ort", "kind": "x"}', "unknown kind 'x'"),
    ('{"ingot": 1, "inputs": [], "outputs": [], "target": "ort", "kind": "decoder"}', "0 inputs with the role 'ids'"),
])
def test_a_damaged_manifest(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ingot.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        Manifest.load(tmp_path)


def test_a_cache_that_nothing_updates(toy_manifest: Callable[..., Manifest]) -> None:
    good = toy_manifest()
    for outputs in (good.outputs[:-1], (*good.outputs[:-1], replace(good.outputs[-1], dtype="f16"))):
        with pytest.raises(ArtifactError, match=r"no output of type f32\['B', 2, 'T', 16\] aliases the cache input 'vc1'"):
            Manifest.from_json(replace(good, outputs=outputs).to_json())


def test_a_decoder_without_a_context(toy_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(ArtifactError, match="needs a context"):
        Manifest.from_json(toy_manifest(context=0).to_json())


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0", "\ud800"])
def test_files_lie_inside_the_artifact(toy_manifest: Callable[..., Manifest], name: str) -> None:
    for changes in ({"graph": name}, {"stages": [name]}, {"files": {name: 1}}, {"receipts": name}):
        with pytest.raises(ArtifactError, match="cannot be a file of an artifact"):
            Manifest.from_json(toy_manifest().to_json() | changes)


def test_logits_of_another_vocabulary(toy_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(ArtifactError, match="the vocab is 7"):
        Manifest.from_json(toy_manifest().to_json() | {"vocab": 7})


def test_a_port_prints_its_alias_only_when_it_has_one() -> None:
    assert "aliases" not in Port(name="x", dtype="f32", dims=("B", 2)).to_json()
    assert Port(name="y", dtype="f32", dims=("B", 2), aliases="x").to_json()["aliases"] == "x"
