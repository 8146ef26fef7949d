"""A queue between threads that is bounded by bytes instead of by items. Does not know what it carries."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other end is gone; nothing more is taken or given."""


class ByteQueue(Generic[T]):
    """First in, first out; `put` waits while it holds `max_bytes` or more, so one item of any size always passes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._held_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: T, size_bytes: int) -> None:
        """Append `item`, waiting for room; raises Closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._held_bytes < self._max_bytes)
            if self._is_closed:
                raise Closed
            self._items.append((item, size_bytes))
            self._held_bytes += size_bytes
            self._changed.notify_all()

    def get(self) -> T:
        """Take the oldest item, waiting for one; raises Closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or bool(self._items))
            if self._is_closed:
                raise Closed
            item, size_bytes = self._items.popleft()
            self._held_bytes -= size_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop what is held and wake every waiting thread, which then raises Closed."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
