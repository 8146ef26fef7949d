"""Hands what an event loop in a thread of its own makes to a caller without one. Does not know what it carries."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
TOLD_AFTER_S = 0.005  # measured: to wake the other thread for each of 2,000 items a second costs a tenth of the CPU


class Handover(Generic[T]):
    """First in, first out, from one event loop to one other thread.

    `put` never waits: it is bounded by bytes if whoever makes more waits for `room` before it does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self._loop, self._max_bytes = loop, max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._held_bytes = 0
        self._counting = threading.Lock()
        self._room = asyncio.Event()
        self._room.set()
        self._some = threading.Event()  # there are items, or no more come
        self._will_tell = self._has_ended = False

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Give an item, in the loop's thread; its bytes are held until the next one is asked for."""
        with self._counting:
            self._held_bytes += size_bytes
        self._look()
        self._items.append((item, size_bytes))
        if not self._will_tell:
            self._will_tell = True
            self._loop.call_later(TOLD_AFTER_S, self._tell)

    @property
    def has_room(self) -> bool:
        """Whether no more than `max_bytes` are held."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until there is room."""
        await self._room.wait()

    def end(self) -> None:
        """Nothing more comes."""
        self._has_ended = True
        self._some.set()

    def taken(self) -> Iterator[T]:
        """All items until the end, in the other thread, waiting for each."""
        while self._items or not self._has_ended:
            self._some.wait()
            self._some.clear()
            while self._items:
                item, size_bytes = self._items.popleft()
                yield item
                with self._counting:
                    self._held_bytes -= size_bytes
                    has_room = self._held_bytes <= self._max_bytes
                if has_room and not self._room.is_set():
                    with suppress(RuntimeError):  # the loop has ended, and nobody waits
                        self._loop.call_soon_threadsafe(self._look)

    def _tell(self) -> None:
        self._will_tell = False
        self._some.set()

    def _look(self) -> None:
        if self._held_bytes > self._max_bytes:
            self._room.clear()
        else:
            self._room.set()


def handed_over(work: Callable[[Handover[T]], Coroutine[Any, Any, None]], *, max_bytes: int) -> Iterator[T]:
    """What `work` puts while it runs in an event loop of its own, in a thread that ends before this does.

    What it raises is raised here, after all that it had put. Closing this early cancels it.
    """
    loop = asyncio.new_event_loop()
    handover: Handover[T] = Handover(loop, max_bytes)
    working = loop.create_task(work(handover))

    async def ended() -> None:
        await asyncio.wait([working])

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(ended())
        finally:
            handover.end()

    thread = threading.Thread(target=run, name="handover", daemon=True)
    thread.start()
    try:
        yield from handover.taken()
    finally:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(working.cancel)
        thread.join()
    working.result()
