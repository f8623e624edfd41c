"""A bar on standard error while a command works; nothing where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is and how far it goes."""


class progress_bar:
    """A context that gives the function to call."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),  # knows what to write where the total is not known yet
            TimeRemainingColumn(),
            console=Console(stderr=True, emoji=False),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._bar.start()
        self._task = self._bar.add_task("Reading", total=None)
        return lambda what, done, total: self._bar.update(
            self._task, description=what, completed=done, total=total
        )

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
