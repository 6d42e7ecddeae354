"""Progress bars on long work: shown on a terminal, quiet elsewhere; every process of a stage moves the same bar."""

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    RenderableType,
    TextColumn,
    TimeRemainingColumn,
)

_done = multiprocessing.get_context("fork").Value("q", 0)  # inherited by the processes that `run_jobs` forks


def tick(steps: int = 1) -> None:
    """Move the bar of this stage on, from whichever process does the work."""
    with _done.get_lock():
        _done.value += steps


class _Shared(Progress):
    """A display that reads the shared count whenever it is drawn."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.update(task.id, completed=_done.value)
        return super().get_renderables()


@contextmanager
def progress(label: str, total: int) -> Iterator["Bar"]:
    """A bar of `total` steps titled `label`, on standard error, moved by `tick`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    _done.value = 0
    console = Console(stderr=True)
    with _Shared(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as display:
        yield Bar(display, display.add_task(label, total=total, note=""))


class Bar:
    """One progress bar."""

    def __init__(self, display: Progress, task: object) -> None:
        self._display, self._task = display, task

    def note(self, text: str) -> None:
        """Write what was finished last behind the bar."""
        self._display.update(self._task, note=text)  # type: ignore[arg-type]

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`, with a note."""
        tick(steps)
        self.note(note)
