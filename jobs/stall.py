"""Ends a worker process in which nothing moves any more, and finds in what is left where it hung. Knows no model."""

from __future__ import annotations

import faulthandler
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STDERR = 2
REARM_SHARE = 0.1  # of the limit: to arm starts a thread, .2 ms, which is not paid for every picture
_OURS = re.compile(r"jobs/(engine|inference|featurize)\.py")
_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')


class Stalled(RuntimeError):
    """A worker made no progress and was ended, as often as Spark tries a task."""


class StallWatch:
    """Ends this process with a dump of all its stacks once nothing `moved` for `limit_s`; with None it does nothing.

    It is faulthandler's watch, a thread of C that needs no interpreter lock, so it ends a model that holds the lock
    for ever too. There is one in a process: Spark's own, `tracebackDumpIntervalSeconds`, is replaced by it.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._armed_at: float | None = None
        self._log: int | None = None  # file descriptor

    def moved(self) -> None:
        """Something was done: the time runs anew (it may be up to a tenth shorter, see REARM_SHARE)."""
        now = time.monotonic()
        if self._limit_s is None or (self._armed_at and now - self._armed_at < REARM_SHARE * self._limit_s):
            return
        if self._log is None:
            # Spark reads this file of a worker that ended and puts its text into the exception.
            folder = os.environ.get("PYTHON_FAULTHANDLER_DIR")
            path = Path(folder, str(os.getpid())) if folder else None
            self._log = STDERR if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._log)
        self._armed_at = now

    def pause(self) -> None:
        """From here on somebody else is waited for, until something `moved`."""
        if self._armed_at is not None:
            faulthandler.cancel_dump_traceback_later()
            self._armed_at = None

    def unwatched(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, where waiting for the next of them is no stall of ours."""
        self.pause()
        for item in items:
            self.moved()
            yield item
            self.pause()
        self.moved()

    def stop(self) -> None:
        """Watch no more."""
        self.pause()
        if self._log is not None and self._log != STDERR:
            os.close(self._log)
        self._log = None


@contextmanager
def watched(limit_s: float | None) -> Iterator[None]:
    """A block that has to be done within `limit_s`."""
    watch = StallWatch(limit_s)
    watch.moved()
    try:
        yield
    finally:
        watch.stop()


def stalled_at(said: str) -> str | None:
    """`file line N in function` where the worker hung whose last words are in `said`; None if it was ended otherwise.

    Of the engine's threads it is one that waits for no other, and only then one that decodes: a model that holds the
    interpreter lock stops those too. Of its frames it is the innermost of a featurizer.
    """
    _, ended, dump = said.partition("Timeout (")
    if not ended:
        return None
    stacks = [thread for thread in dump.split("(most recent call first):") if _OURS.search(thread)]
    working = [stack for stack in stacks if "byte_queue.py" not in stack and "in shutdown" not in stack]
    working.sort(key=lambda stack: ("in _decode" in stack, "/featurizers/" not in stack))
    frames = [match.groups() for match in _FRAME.finditer((working or stacks or [""])[0])]
    if not frames:
        return "an unknown place"
    path, line, function = next((frame for frame in frames if "/featurizers/" in frame[0]), frames[0])
    return f"{path} line {line} in {function}"


@contextmanager
def naming_stalls(limit_s: float) -> Iterator[None]:
    """Raise Stalled for what Spark throws when a worker of the block's job was ended by its watch."""
    try:
        yield
    except Exception as e:
        place = stalled_at(str(e))
        if place is None:
            raise
        raise Stalled(
            f"a worker made no progress for {limit_s:g} s (featurize.stall_s) at {place}, and was ended; "
            "if the model is only slow, give it more time"
        ) from e
