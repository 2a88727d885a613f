"""Writing an artifact whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ingot.errors import ArtifactError
from ingot.runtime.manifest import MANIFEST, Manifest, displaced

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class ArtifactWriter:
    """Collects an artifact in a temporary sibling directory and swaps it in by rename.

        with ArtifactWriter("out", force=True) as writer:
            writer.path("model.onnx").write_bytes(...)
            writer.finish(manifest)

    Killed at any moment, it leaves at `target` the old artifact or the new one. Where the system can exchange two
    names (Linux renameat2) that is one atomic step. Elsewhere it is two renames, and a kill between them leaves
    the old artifact whole at `.<name>.ingot-old`; the next writer puts it back, and opening says where it is.

    Leaving the block by an exception, or without `finish`, removes everything written.
    """

    def __init__(self, target: Path | str, *, force: bool = False) -> None:
        """target: the artifact directory to be. force: whether an existing artifact there may be replaced."""
        self.target = Path(os.path.realpath(target))
        self.force = force
        self.root = self.target.with_name(f".{self.target.name}.ingot-tmp-{secrets.token_hex(4)}")
        """The temporary directory; everything under it becomes the artifact."""
        self._lock = -1
        self._finished = False

    def __enter__(self) -> ArtifactWriter:
        with _clear_os_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            _restore_displaced(self.target)
            self._check_target()
            _remove_leftovers(self.target)
            self.root.mkdir()
            self._lock = _lock(self.root)
        return self

    def path(self, name: str) -> Path:
        """Where to write the file `name` (relative, may contain folders, which are made)."""
        file = self.root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"not a name inside the artifact: {name!r}")
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def finish(self, manifest: Manifest) -> Manifest:
        """Records the size of every file written, saves `manifest` with them, and swaps the artifact in.

        Returns the manifest as saved. ArtifactError when the disk is full or the target appeared meanwhile.
        """
        with _clear_os_errors(self.target):
            sizes = {str(file.relative_to(self.root).as_posix()): file.stat().st_size
                     for file in sorted(self.root.rglob("*")) if file.is_file() and file.name != MANIFEST}
            saved = replace(manifest, files=sizes)
            saved.save(self.root)
            _flush_to_disk(self.root)
            self._check_target()
            _swap(self.root, self.target)
            self._finished = True
        return saved

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        shutil.rmtree(self.root, ignore_errors=True)
        if isinstance(error, OSError) and self._is_ours(error):
            with _clear_os_errors(self.target):
                raise error
        if error is None and not self._finished:
            raise ArtifactError("nothing was written: the writer was left without finish()", where=str(self.target))

    def _is_ours(self, error: OSError) -> bool:
        """Whether `error` is about writing the artifact, rather than about reading the model it is made from."""
        in_root = isinstance(error.filename, str) and Path(error.filename).is_relative_to(self.root)
        return in_root or error.errno in (errno.ENOSPC, errno.EDQUOT)

    def _check_target(self) -> None:
        where = str(self.target)
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise ArtifactError("a file is in the way of the output directory", where=where, hint="choose another output")
        if not any(self.target.iterdir()):
            return
        if not (self.target / MANIFEST).exists():
            raise ArtifactError("this directory exists and is not an ingot artifact, so it is not replaced", where=where,
                                hint="choose another output, or remove it yourself")
        if not self.force:
            raise ArtifactError("this artifact exists already", where=where,
                                hint="replace it with --force, or choose another output")


def _swap(new: Path, target: Path) -> None:
    """Puts `new` at `target`. What was there ends up at `new`, or is gone."""
    if not target.exists() or not any(target.iterdir()):
        os.rename(new, target)
        return
    if _exchange(new, target):
        return
    aside = displaced(target)
    os.rename(target, aside)
    os.rename(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two names in one atomic step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _restore_displaced(target: Path) -> None:
    """Undoes a swap that was killed between its two renames."""
    aside = displaced(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(aside, target)


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary directories of writers that were killed; a living writer holds a lock on its own."""
    for leftover in target.parent.iterdir():
        lock = _lock(leftover) if leftover.name.startswith(f".{target.name}.ingot-tmp-") else -1
        if lock >= 0:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def _lock(directory: Path) -> int:
    """A file descriptor holding a lock on `directory` until closed or the process dies; -1 if it is taken."""
    if sys.platform == "win32":
        return -1
    import fcntl

    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _flush_to_disk(root: Path) -> None:
    """Makes the rename mean something after a power cut: the data is on the disk before the name is."""
    for path in (*root.rglob("*"), root):
        with suppress(PermissionError):  # Windows cannot open a directory
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _clear_os_errors(target: Path) -> Iterator[None]:
    """Turns what the operating system says about writing `target` into one clear error."""
    try:
        yield
    except OSError as error:
        where = str(target)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError("the disk is full; nothing was replaced", where=where,
                                hint="make room, or choose an output on another disk") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ArtifactError(f"cannot write here: {error.strerror}", where=where, hint="choose another output") from error
        raise ArtifactError(f"cannot write: {error.strerror or error}", where=where) from error
