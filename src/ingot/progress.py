"""A progress bar on stderr; silent where stderr is no terminal or rich is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[int, int, str], None]
"""Called with (done, total, what)."""

LONGEST = 56
"""Characters of `what` that are drawn, the last ones: names of weights differ at their end."""


@contextmanager
def progress_bar(title: str) -> Iterator[Step]:
    """Yields a Step that draws; the bar disappears at the end."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield lambda done, total, what: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
               TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1, what="")

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=max(total, 1), what=what[-LONGEST:])

        yield step
