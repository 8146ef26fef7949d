"""What is polled is looked at until the block ends, however it ends, and never after."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.polling import polling


def test_a_function_is_called_again_and_again_while_the_block_lasts_and_not_after() -> None:
    names: list[str] = []
    with polling(lambda: names.append(threading.current_thread().name), every_s=0.01, name="look"):
        time.sleep(0.2)
    n_calls = len(names)
    assert n_calls > 3 and set(names) == {"look"}
    time.sleep(0.1)
    assert len(names) == n_calls


def test_a_block_that_ends_at_once_waits_neither_for_the_next_call_nor_leaves_a_thread() -> None:
    began, before = time.monotonic(), threading.active_count()
    with pytest.raises(KeyError, match="broken"), polling(lambda: None, every_s=60, name="look"):
        raise KeyError("broken")
    assert time.monotonic() - began < 5 and threading.active_count() == before


def test_a_block_ends_after_the_call_that_is_under_way() -> None:
    begun, ended = threading.Event(), threading.Event()

    def look() -> None:
        begun.set()
        time.sleep(0.2)
        ended.set()

    with polling(look, every_s=0.01, name="look"):
        begun.wait()
    assert ended.is_set()
