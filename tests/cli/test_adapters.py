"""Adapters from the command line and in sessions: merged when the model is compiled, or chosen by every row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ingot.cli import main
from ingot.errors import GenerateError
from ingot.running import stream
from ingot.runtime.manifest import Manifest
from ingot.runtime.session import Session
from tests.frontend.models import saved, tiny
from tests.passes.adapters import low_rank, write_adapter

SHAPES = {f"model.layers.{i}.self_attn.q_proj": (32, 32) for i in (0, 1)}
IDS = np.random.default_rng(0).integers(1, 90, size=(3, 9))
DECODE = "clean,recognize,clean,fuse,take-logits,insert-kv-cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of: a base, two adapters, artifacts of the base, of each merged, and of the base with both to choose from."""
    folder = tmp_path_factory.mktemp("adapters")
    saved(tiny("llama")[1], folder / "base")
    for seed, name in enumerate(("one", "two")):
        write_adapter(folder / name, low_rank(SHAPES, seed=seed, size=0.5))
    runs = {"plain": [], "merged-one": ["--adapter", folder / "one"], "merged-two": ["--adapter", folder / "two"],
            "several": ["--passes", f"{DECODE},lora-inputs{{adapters={folder / 'one'}+{folder / 'two'}}},clean"]}
    for out, options in runs.items():
        done = CliRunner().invoke(main, ["compile", str(folder / "base"), "-o", str(folder / out), *map(str, options)])
        assert done.exit_code == 0, done.output
    return folder


def test_merged_when_compiled(made):
    manifest = Manifest.load(made / "merged-one")
    assert manifest.pipeline.startswith(f"merge-lora{{adapter={made / 'one'}}},clean")
    assert manifest.adapters == ()
    plain, merged = (Session.open(made / name).logits(IDS) for name in ("plain", "merged-one"))
    assert np.abs(plain - merged).max() > 0.1


def test_rows_choose(made):
    session = Session.open(made / "several")
    assert session.manifest.adapters == ("one", "two")
    expected = [Session.open(made / name).logits(IDS)[row] for row, name in enumerate(("plain", "merged-one", "merged-two"))]
    for row, found in enumerate(session.logits(IDS, adapters=[None, "one", "two"])):
        np.testing.assert_allclose(found, expected[row], atol=1e-5)
    np.testing.assert_allclose(session.logits(IDS, adapters=["two"])[2], expected[2], atol=1e-5)
    np.testing.assert_array_equal(session.logits(IDS), Session.open(made / "plain").logits(IDS))


def test_rows_keep_what_they_chose(made):
    """Through prefill of unequal prompts, steps, and rows that change places."""
    session = Session.open(made / "several")
    expected = session.logits(IDS, adapters=[None, "one", "two"])
    first = session.prefill([IDS[0, :4], IDS[1, :5], IDS[2, :6]], adapters=[None, "one", "two"])
    np.testing.assert_allclose(first, [expected[0, 3], expected[1, 4], expected[2, 5]], atol=1e-5)
    session.select([2, 1])
    np.testing.assert_allclose(session.step([IDS[2, 6], IDS[1, 5]]), [expected[2, 6], expected[1, 5]], atol=1e-5)
    more = session.forward([IDS[2, 7:9], IDS[1, 6:8]])
    np.testing.assert_allclose(more, [expected[2, 7:9], expected[1, 6:8]], atol=1e-5)


def test_what_cannot_be_chosen(made):
    session = Session.open(made / "several")
    with pytest.raises(GenerateError, match="this artifact has no adapter three") as caught:
        session.reset(2, adapters=["three"])
    assert "it has one, two" in str(caught.value.hint)
    with pytest.raises(GenerateError, match="2 adapters for 3 rows"):
        session.prefill([[1], [2], [3]], adapters=["one", None])
    with pytest.raises(GenerateError, match="has no adapter one") as caught:
        Session.open(made / "plain").reset(1, adapters=["one"])
    assert "lora-inputs" in str(caught.value.hint)


def test_generate(made):
    def ids(artifact, **options):
        return [r.ids for r in finished(stream(made / artifact, IDS.tolist(), max_new_tokens=8, stop_ids=frozenset(), **options))]

    def finished(generation):
        for _ in generation:
            pass
        return generation.results

    plain, one, two = (ids(name) for name in ("plain", "merged-one", "merged-two"))
    assert ids("several", adapters=("one",)) == one
    assert ids("several", adapters=(None, "one", "two")) == [plain[0], one[1], two[2]]


def test_an_adapter_for_another_model_is_one_screen(made, tmp_path):
    path = write_adapter(tmp_path / "other", low_rank({"model.layers.5.self_attn.q_proj": (32, 32)}))
    done = CliRunner().invoke(main, ["compile", str(made / "base"), "-o", str(tmp_path / "out"), "--adapter", str(path)])
    assert done.exit_code == 1
    assert "1 of the 1 parameters it changes are not in this model: model.layers.5.self_attn.q_proj" in done.output
    assert not (tmp_path / "out").exists()


def test_opt(made, tmp_path):
    text = tmp_path / "base.ir"
    assert CliRunner().invoke(main, ["import", str(made / "base"), "-o", str(text)]).exit_code == 0
    done = CliRunner().invoke(main, ["opt", str(text), "--adapter", str(made / "one"), "--passes", "clean"])
    assert done.exit_code == 0
    assert f"after: merge-lora{{adapter={made / 'one'}}},clean" in done.output
    assert done.output.count('computed(pass="merge-lora"') == 2
    record = CliRunner().invoke(main, ["passes", "merge-lora", "--json"])
    assert json.loads(record.output)[0]["contract"] == "edit"
