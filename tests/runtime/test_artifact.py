"""An artifact is written whole or not at all, also when the writer is killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot.errors import ArtifactError
from ingot.runtime import artifact
from ingot.runtime.artifact import ArtifactWriter
from ingot.runtime.manifest import Manifest, displaced

OTHER = Manifest(target="ort", kind="other", inputs=(), outputs=())


def write(target: Path, text: str, *, force: bool = False) -> None:
    with ArtifactWriter(target, force=force) as writer:
        writer.path("stages/00-import.ir").write_text(text)
        writer.finish(OTHER)


def read(target: Path) -> str:
    Manifest.load(target)
    return (target / "stages/00-import.ir").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of replacing a directory."""
    if request.param == "two renames":
        monkeypatch.setattr(artifact, "_exchange", lambda a, b: False)


@pytest.mark.usefixtures("swap")
def test_writing_and_replacing(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    write(out, "old")
    assert read(out) == "old"
    write(out, "new!", force=True)
    assert read(out) == "new!"
    assert names(out.parent) == ["out"]
    assert Manifest.load(out).files == {"stages/00-import.ir": 4}


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write(out, "x")
    assert read(out) == "x"


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == "new"


def test_an_existing_artifact_is_refused_without_force(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(ArtifactError, match=r"exists already\n  replace it with --force"):
        write(tmp_path / "out", "new")
    assert read(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_what_is_not_an_artifact_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="is not an ingot artifact, so it is not replaced"):
        write(tmp_path / "out", "new", force=True)
    with pytest.raises(ArtifactError, match="a file is in the way"):
        write(tmp_path / "out/thesis.tex", "new", force=True)


def test_an_artifact_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "out").__enter__()
    write(tmp_path / "out", "faster")
    with pytest.raises(ArtifactError, match="exists already"):
        writer.finish(OTHER)
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert names(tmp_path) == ["out"]
    assert read(tmp_path / "out") == "faster"


def test_an_exception_leaves_the_old_artifact_and_no_litter(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    def fail() -> None:
        with ArtifactWriter(tmp_path / "out", force=True) as writer:
            writer.path("weights.bin").write_bytes(b"half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert read(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_leaving_without_finish_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="left without finish"), ArtifactWriter(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    def fill() -> None:
        with ArtifactWriter(tmp_path / "out", force=True) as writer:
            writer.path("weights.bin").symlink_to("/dev/full")
            writer.path("weights.bin").write_bytes(b"x")

    with pytest.raises(ArtifactError, match=r"the disk is full; nothing was replaced\n  make room"):
        fill()
    assert read(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write: "):
        write(tmp_path / "file/out", "x")

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # tests may run as root, whom no directory refuses
    with pytest.raises(ArtifactError, match=r"cannot write here: Permission denied\n  choose another output"):
        write(tmp_path / "out", "x")


def test_an_error_in_reading_the_model_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), ArtifactWriter(tmp_path / "out"):
        (tmp_path / "missing.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name inside"), ArtifactWriter(tmp_path / "out") as writer:
        writer.path(name)


def test_litter_of_killed_writers_is_removed_and_of_living_ones_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".out.ingot-tmp-00000000"
    dead.mkdir()
    with ArtifactWriter(tmp_path / "out") as living:
        living.path("x").write_text("x")
        write(tmp_path / "out", "other")
        assert not dead.exists()
        assert living.path("x").exists()
        living.force = True
        living.finish(OTHER)
    assert names(tmp_path) == ["out"]


def test_the_file_system_may_not_know_how_to_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL from renameat2 (some network file systems) means two renames, other errors are errors."""

    class Library:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def renameat2(self, *args: object) -> int:
            return -1

    monkeypatch.setattr(artifact.ctypes, "CDLL", Library)
    monkeypatch.setattr(artifact.ctypes, "get_errno", lambda: errno.EINVAL)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", force=True)
    assert read(tmp_path / "out") == "new"
    monkeypatch.setattr(artifact.ctypes, "get_errno", lambda: errno.EIO)
    with pytest.raises(ArtifactError, match="cannot write: Input/output error"):
        write(tmp_path / "out", "newer", force=True)
    assert read(tmp_path / "out") == "new"


KILLER = """
import os, signal, sys
from pathlib import Path
from ingot.errors import ArtifactError
from ingot.runtime import artifact
from ingot.runtime.artifact import ArtifactWriter
from ingot.runtime.manifest import Manifest, displaced

OUT, EXCHANGE = Path(sys.argv[1]), sys.argv[2] == "exchange"
OTHER = Manifest(target="ort", kind="other", inputs=(), outputs=())
if not EXCHANGE:
    artifact._exchange = lambda a, b: False

def write(text):
    with ArtifactWriter(OUT, force=True) as writer:
        writer.path("stages/00-import.ir").write_text(text)
        writer.finish(OTHER)

def killed_at(moment):
    # Every file operation and the call of renameat2 raise an audit event; the child dies just before the given one.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    count = 0
    def hook(event, args):
        nonlocal count
        if event.startswith(("os.", "open", "shutil.", "ctypes.", "fcntl.")):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    write("new")
    os._exit(0)

seen, moment = [], 1
while True:
    write("old")
    was_killed = killed_at(moment)
    if not OUT.exists():
        assert not EXCHANGE, f"nothing at the target after moment {moment}"
        try:
            Manifest.load(OUT)
        except ArtifactError as error:
            assert f"mv {displaced(OUT)}" in str(error), error
        os.rename(displaced(OUT), OUT)
        seen.append("aside")
    else:
        Manifest.load(OUT)
        seen.append((OUT / "stages/00-import.ir").read_text())
    if not was_killed:
        break
    moment += 1
write("last")
assert sorted(p.name for p in OUT.parent.iterdir()) == [OUT.name], list(OUT.parent.iterdir())
print(" ".join(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks and exchanges names as Linux does")
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_killed_at_every_moment_it_leaves_the_old_or_the_new(tmp_path: Path, how: str) -> None:
    root = str(Path(__file__).parents[2])
    setup = f"import sys, runpy; sys.path.insert(0, {root!r}); runpy.run_path({root + '/conftest.py'!r})\n"
    command = [sys.executable, "-c", setup + KILLER, str(tmp_path / "out"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    changes = [state for state, before in zip(seen, [None, *seen], strict=False) if state != before]
    assert changes == (["old", "new"] if how == "exchange" else ["old", "aside", "new"])
    assert len(seen) > 20


def test_a_swap_killed_between_two_renames_is_undone_by_the_next_writer(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    os.rename(tmp_path / "out", displaced(tmp_path / "out"))
    with pytest.raises(ArtifactError, match="exists already"):
        write(tmp_path / "out", "new")
    assert read(tmp_path / "out") == "old"


def test_the_toy_is_replaced_whole(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    path = write_toy(tmp_path / "out")
    before = (path / "weights.bin").read_bytes()
    write_toy(path, seed=1, force=True)
    assert (path / "weights.bin").read_bytes() != before
    Manifest.load(path)
