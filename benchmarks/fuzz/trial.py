"""One input for one reader, within limits of time and memory; and what went wrong, if anything did."""

from __future__ import annotations

import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingot.errors import IngotError

SECONDS = 10.0
"""Processor time one input may take, unless it is said."""
BYTES = 2 << 30
"""Address space one input may take beyond what the process has."""
ROOT = Path(__file__).parents[2]
LAYERS = ("ir", "frontend", "passes", "backends", "runtime", "src/ingot")


class TooSlow(BaseException):
    """An input took longer than SECONDS; no handler of Exception stops it."""


@dataclass(frozen=True)
class Failure:
    """Something other than an IngotError came out of a reader."""

    error: str
    """The exception's type and the first line of its message."""
    where: str
    """file:line of ingot that was innermost."""
    trace: str

    @property
    def kind(self) -> tuple[str, str]:
        """What makes two failures the same: the exception's type and the place."""
        return self.error.split(":")[0], self.where


def trial(read: Callable[[bytes, Path], object], data: bytes, *, seconds: float = SECONDS) -> Failure | None:
    """Feeds one input to a reader, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="ingot-fuzz-") as folder, warnings.catch_warnings(), _limits(seconds):
        warnings.simplefilter("ignore")
        try:
            read(data, Path(folder))
        except IngotError:
            return None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            return _failure(error)
    return None


def _failure(error: BaseException) -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    places = []
    for frame in frames:
        path = Path(frame.filename).resolve()
        if path.is_relative_to(ROOT) and str(path.relative_to(ROOT)).startswith(LAYERS):
            places.append(f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}")
    first = str(error).strip().split("\n")[0][:200]
    trace = "".join(traceback.format_exception(error, limit=-12))
    return Failure(f"{type(error).__name__}: {first}", places[-1] if places else "outside", trace)


@contextmanager
def _limits(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, handler)
