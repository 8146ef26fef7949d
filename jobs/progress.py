"""Shows what a command is doing on standard error: a live line on a terminal, plain lines elsewhere, or lines of JSON.
Knows no job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from jobs.log import one_line, write
from jobs.polling import polling

POLL_S = 0.5
PLAIN_S = 30  # between two plain lines of one phase
BAR_CELLS = 20

Text = str | Callable[[], str]  # of a phase: as it is, or what gives it as it is now


def media_line(*, done: int, planned: int, n_failed: int, elapsed_s: float, usd: float) -> str:
    """How far the featurizing of `planned` media is after `elapsed_s` seconds, when it will end, and its dollars."""
    done = min(done, planned)  # a task that is tried again counts twice
    filled = BAR_CELLS * done // planned if planned else BAR_CELLS
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    eta = readable_s((planned - done) / rate) if rate else "-"
    counts = f"{done:,} of {planned:,} media  {rate:.1f}/s  {n_failed:,} errors"
    return f"[{'#' * filled}{'.' * (BAR_CELLS - filled)}] {counts}  ETA {eta}  {readable_usd(usd)}"


def readable_s(seconds: float) -> str:
    """Seconds as `43 s`, `2.4 min`, `12 min` or `5.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.{int(seconds < 600)}f} min"
    return f"{seconds / 3600:.1f} h"


def readable_usd(usd: float) -> str:
    """Dollars and cents; of less than a dollar two significant digits."""
    digits = 2 if usd >= 1 or usd <= 0 else 1 - math.floor(math.log10(usd))
    return f"${usd:,.{digits}f}"


def unseen(text: Text, **context: object) -> None:
    """Progress that nobody looks at."""


class Progress:
    """One command's progress; call it with a text for each new phase."""

    def __init__(
        self,
        *,
        live: bool,
        count_tasks: Callable[[], tuple[int, int]] | None = None,
        context: Mapping[str, object] | None = None,
    ) -> None:
        """context: what every line of JSON says beside its text; None: plain text instead."""
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live = live and self._console.is_terminal and context is None
        self._context = None if context is None else dict(context)
        self._of_phase: Mapping[str, object] = {}
        self._count_tasks = count_tasks
        self._text: Text = ""
        self.phases: list[tuple[str, float]] = []  # how each began, and when on the monotonic clock
        self._began = time.monotonic()

    def about(self, **context: object) -> None:
        """From now on lines of JSON say this too; None takes a thing back."""
        if self._context is not None:
            self._context |= context

    def __call__(self, text: Text, **context: object) -> None:
        """Begin a phase; a text that changes is asked for again and again while it lasts.

        context: what lines of JSON say beside it during the phase.
        """
        self._text, self._of_phase = text, context
        began_as = self._now()
        self.phases.append((began_as, time.monotonic()))
        if not self._live:
            self._print(began_as)

    def note(self, text: str) -> None:
        """Say something that stays on the terminal."""
        self._print(text)

    def _now(self) -> str:
        text = self._text  # another thread may begin a phase meanwhile
        return text if isinstance(text, str) else text()

    def _print(self, text: str) -> None:
        if self._context is not None:
            write(text, {**self._context, **self._of_phase})
            return
        self._console.print(f"{time.monotonic() - self._began:7.1f} s  {text}", soft_wrap=True, markup=False)

    def watch(self, count_tasks: Callable[[], tuple[int, int]]) -> None:
        """Show finished and all tasks, as `count_tasks` gives them, beside the phase."""
        self._count_tasks = count_tasks

    def line(self) -> str:
        """The live line: seconds, phase and tasks."""
        done, total = self._count_tasks() if self._count_tasks is not None else (0, 0)
        tasks = f"  ({done} of {total} tasks)" if total > 1 else ""
        return f"{time.monotonic() - self._began:.0f} s  {self._now()}{tasks}"

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Keep the line up for the block; where nothing is live, print that of a phase which changes now and then.

        An error that ends the block is a line of JSON; in plain text it is the command's last line.
        """
        from rich.markup import escape

        with self._console.status("") if self._live else nullcontext() as status:

            def refresh() -> None:
                if status is not None:
                    status.update(escape(self.line()))
                elif not isinstance(self._text, str):
                    self._print(self._now())

            with polling(refresh, every_s=POLL_S if self._live else PLAIN_S, name="progress"):
                try:
                    yield self
                except BaseException as e:
                    if self._context is not None:
                        write(one_line(e), {**self._context, **self._of_phase}, level="ERROR")
                    raise
