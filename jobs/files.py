"""Reads files of folders and members of archives: one outcome for each. Knows no HTTP and no politeness."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime

from featurizers.probe import MediaFacts
from jobs.archives import BrokenMember, Member, Payload, open_member
from jobs.fetch_settings import Settings
from jobs.outcomes import Attempt, Outcome, Request, finished, judge_body, lost, plain
from jobs.packs import COPY_BYTES, Body, StorageFailed
from jobs.robots import headers_opt_out
from jobs.sources import SourceError, open_file
from jobs.turns import Turns
from schemas.errors import Error, ErrorCode, error

N_READERS = 4  # hides the latency of an object store


async def read_all(files: deque[Request], settings: Settings, turns: Turns, put: Callable[[Outcome], None]) -> None:
    """Read files, several at a time, while there is room, however long it takes: nobody is asked politely."""

    async def reader() -> None:
        while files:
            request = files.popleft()
            await turns.handover.room()
            try:
                outcome = await asyncio.to_thread(read_file, request, settings)
            except StorageFailed:  # ours, not the data's
                raise
            except Exception as e:
                outcome = lost(request, e)
            put(outcome)

    await asyncio.gather(*(reader() for _ in range(min(N_READERS, len(files)))))


def read_file(request: Request, settings: Settings) -> Outcome:
    """The outcome of reading one file of a folder, or one member of an archive. Raises StorageFailed.

    A large one becomes an object of the lake too: what was featurized must be there when its folder has changed.
    """
    assert request.root is not None
    started_at, started = datetime.now(UTC), time.perf_counter()
    held, facts = None, MediaFacts()
    failed: Error | None = None
    with Body(settings.packs) as body:
        try:
            if request.held_as in (None, "file"):
                opened: Member = open_file(request.root, request.url)
            else:
                opened = open_member(request.root, request.held_as, request.offset, request.length)
            with closing(opened) as file:
                refusal = headers_opt_out(opened.headers, settings.opt_outs) if isinstance(opened, Payload) else None
                while refusal is None and body.size_bytes <= settings.max_bytes and (chunk := file.read(COPY_BYTES)):
                    body.write(chunk)
        except (FileNotFoundError, BrokenMember) as e:
            failed = error(ErrorCode.NOT_FOUND, plain(str(e)))
        except (OSError, SourceError) as e:
            failed = error(ErrorCode.CONNECTION_FAILED, f"the file cannot be read: {plain(str(e))}")
        else:
            if refusal is not None:
                failed = error(ErrorCode.OPTED_OUT, refusal)
            elif body.size_bytes > settings.max_bytes:
                failed = error(ErrorCode.TOO_LARGE, f"the file exceeds {settings.max_bytes} bytes")
            else:
                facts, failed = judge_body(body)
        if failed is None and (reason := settings.taken_down.of_hash(body.media_id)) is not None:
            failed = error(ErrorCode.TAKEN_DOWN, reason)
        if failed is None:
            held = body.held()
    attempt = Attempt(
        started_at=started_at,
        final_url=request.url,
        bytes=min(body.size_bytes, settings.max_bytes),
        ms=(time.perf_counter() - started) * 1e3,
        error=failed,
    )
    is_opt_out = failed is not None and failed["code"] == ErrorCode.OPTED_OUT
    return finished(request, [attempt], failed, held=held, facts=facts, opted_out=is_opt_out)
