"""Progress bars on long work: shown on a terminal, quiet elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(label: str, total: int) -> Iterator["Bar"]:
    """A bar of `total` steps titled `label`, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as display:
        yield Bar(display, display.add_task(label, total=total, note=""))


class Bar:
    """One progress bar."""

    def __init__(self, display: Progress, task: object) -> None:
        self._display, self._task = display, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by `steps`; `note` stands behind the bar until the next one."""
        self._display.update(self._task, advance=steps, note=note)  # type: ignore[arg-type]
