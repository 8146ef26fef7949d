"""Shows what a command is doing on standard error: a live line on a terminal, plain lines elsewhere. Knows no job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5


class Progress:
    """One command's progress; call it with a text for each new phase."""

    def __init__(self, *, live: bool, count_tasks: Callable[[], tuple[int, int]] | None = None) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live = live and self._console.is_terminal
        self._count_tasks = count_tasks
        self._text = ""
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Begin a phase."""
        self._text = text
        if not self._live:
            self._console.print(f"{time.monotonic() - self._began:7.1f} s  {text}", soft_wrap=True, markup=False)

    def watch(self, count_tasks: Callable[[], tuple[int, int]]) -> None:
        """Show finished and all tasks, as `count_tasks` gives them, beside the phase."""
        self._count_tasks = count_tasks

    def line(self) -> str:
        """The live line: seconds, phase and tasks."""
        done, total = self._count_tasks() if self._count_tasks is not None else (0, 0)
        tasks = f"  ({done} of {total} tasks)" if total > 1 else ""
        return f"{time.monotonic() - self._began:.0f} s  {self._text}{tasks}"

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Keep the live line up for the block."""
        if not self._live:
            yield self
            return
        from rich.markup import escape

        stop = threading.Event()
        with self._console.status("") as status:

            def refresh() -> None:
                while not stop.wait(POLL_S):
                    status.update(escape(self.line()))

            thread = threading.Thread(target=refresh, name="progress", daemon=True)
            thread.start()
            try:
                yield self
            finally:
                stop.set()
                thread.join()
