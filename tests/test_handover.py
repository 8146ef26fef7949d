"""What an event loop in a thread of its own hands to a caller: in order, bounded by bytes, ended with its caller."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from jobs.handover import Handover, handed_over


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "handover"]


def test_all_items_come_in_order_and_then_what_the_work_raises() -> None:
    async def work(handover: Handover[int]) -> None:
        for number in range(1000):
            handover.put(number)
            if number % 100 == 0:
                await asyncio.sleep(0.001)
        raise ValueError("after a thousand")

    found: list[int] = []
    with pytest.raises(ValueError, match="after a thousand"):
        found.extend(handed_over(work, max_bytes=1))
    assert found == list(range(1000))
    assert threads() == []


def test_the_work_goes_on_while_the_caller_is_busy_until_there_is_no_room() -> None:
    made = []

    async def work(handover: Handover[int]) -> None:
        for number in range(20):
            await handover.room()
            made.append(number)
            handover.put(number, 10)
            await asyncio.sleep(0)

    taken = handed_over(work, max_bytes=40)
    assert next(taken) == 0
    time.sleep(0.2)
    assert made == list(range(5))  # the first is not done with; one above the limit says that it is reached
    assert next(taken) == 1
    time.sleep(0.2)
    assert made == list(range(6))
    assert list(taken) == list(range(2, 20))


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_a_caller_that_stops_early_cancels_the_work_and_waits_for_its_end(kept: int) -> None:
    ended = []

    async def work(handover: Handover[int]) -> None:
        try:
            for number in range(10_000):
                handover.put(number)
                await asyncio.sleep(0.001)
        finally:
            await asyncio.sleep(0.05)  # of closing connections
            ended.append(True)

    taken = handed_over(work, max_bytes=1 << 20)
    for number in range(kept):
        assert next(taken) == number
    closed_at = time.monotonic()
    taken.close()
    assert time.monotonic() - closed_at < 5  # the work would take ten
    assert ended == [True][:kept] and threads() == []  # nothing was begun where nothing was asked for


def test_a_task_of_the_work_that_nobody_waits_for_ends_with_it() -> None:
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def work(handover: Handover[int]) -> None:
        forgotten = asyncio.create_task(forever())
        handover.put(1)
        await asyncio.sleep(0)
        assert not forgotten.done()

    assert list(handed_over(work, max_bytes=1)) == [1]
    assert ended == [True] and threads() == []
