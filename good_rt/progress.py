"""How far long work is: bars on standard error, a line now and then without a terminal, or nothing.

Steps take a `Progress` and know nothing of terminals; rich is imported when bars are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from good_rt.files import printable

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 30
"""Seconds between two lines of progress without a terminal."""


class Progress:
    """Reports tasks and notes; without ``bars`` (rich's Progress) it says nothing."""

    def __init__(self, bars: Any = None) -> None:
        self._bars = bars

    @contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar for one piece of work; yields a function that takes the items done since its last
        call.

        Args:
            text: What is done, such as "training".
            total: Number of items; None where it is not known.
        """
        if self._bars is None:
            yield lambda count: None
            return
        bars = self._bars
        if not bars.console.is_terminal:  # bars would only appear at the end
            yield _Lines(bars.console, text, total).advance
            return
        task = bars.add_task(text, total=total)
        yield lambda count: bars.advance(task, count)
        bars.update(task, total=total or 1, completed=total or 1)

    def note(self, text: str) -> None:
        """Prints a line between the bars."""
        if self._bars is not None:
            self._bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class _Lines:
    """Progress without a terminal: a line at the beginning, and one every `LINE_SECONDS`."""

    def __init__(self, console: Console, text: str, total: int | None) -> None:
        self._console, self._text, self._total = console, text, total
        self._done, self._began = 0, time.monotonic()
        self._last_line = self._began
        self._print("...")

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._total is None or not self._done or now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        left = (now - self._began) * (self._total - self._done) / self._done
        about = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        self._print(f"{self._done} of {self._total}, about {about} left")

    def _print(self, words: str) -> None:
        self._console.print(f"{self._text} {words}", markup=False, highlight=False, soft_wrap=True)


SILENT = Progress()
"""Reports nothing."""


@contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Progress]:
    """Progress on standard error while the block runs; none with ``quiet``."""
    if quiet:
        yield SILENT
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Progress(bars)
