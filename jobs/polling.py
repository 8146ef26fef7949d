"""Calls a function now and then in a thread of its own while a block lasts. Does not know what for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polling(look: Callable[[], object], *, every_s: float, name: str) -> Iterator[None]:
    """Call `look` every so many seconds until the block ends, also by an error; it is not running any more then.

    name: of the thread. Where `look` raises, it is not called again, and the block goes on.
    """
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(every_s):
            look()

    thread = threading.Thread(target=poll, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
