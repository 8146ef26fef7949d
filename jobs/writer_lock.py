"""One writing driver at a time where Delta's log cannot keep two apart. Knows an object of the store, no table.

On S3 a commit of Delta looks whether its version is free and then writes it, two requests: two drivers can both find it
free. Here an object of the lake says who writes, and only conditional requests change it: created where it is not there
(If-None-Match), replaced where it is still what was read (If-Match). It is never removed: a released one is replaced.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from jobs.polling import polling
from jobs.stores import S3, StoreRefused, open_store, refusal, store_of

WRITER_LOCK = "_writer_lock.json"  # in the lake's root
NOT_AS_EXPECTED = ("PreconditionFailed", "NoSuchKey", "404", "412")
CONFLICTS = ("ConditionalRequestConflict", "409")  # another request is on its way, perhaps this one's first try
CONFLICT_ATTEMPTS = 5


class WriterRefused(RuntimeError):
    """Another driver lives and writes the lake; worth trying again later."""


class WriterLost(RuntimeError):
    """Another driver took this one for dead and writes the lake now; this one must stop."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What the object says: who writes, and how long after it was last written it may be taken over."""

    owner: str
    run_id: str
    host: str
    expiry_s: float
    beats: int = 0  # so that no two heartbeats have the same tag
    is_released: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The object as it was read: its age is by the store's clock, so that no machine's clock matters."""

    holder: Holder
    tag: str
    age_s: float


class LockObject(Protocol):
    """An object of a store with conditional writes."""

    def read(self) -> Seen | None: ...

    def write(self, holder: Holder, *, tag: str | None) -> str | None:
        """The new tag; None, and nothing written, unless it is still at `tag`, or not there for a tag of None."""
        ...


def needs_lock(uri: str) -> bool:
    """Whether Delta's log cannot keep drivers apart at a URI."""
    return store_of(uri) is S3


def clocks() -> tuple[float, float]:
    """Seconds by two clocks: one that nobody sets and that goes on while the machine is suspended, and the wall's."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), time.time()


def elapsed_s(since: tuple[float, float]) -> float:
    """How long ago that was by the clock that says longer: the first stands while a virtual machine is paused."""
    return max(now - then for now, then in zip(clocks(), since, strict=True))


def free_tag(seen: Seen | None, uri: str) -> str | None:
    """The tag under which the lock can be taken, None where there is none yet; raises WriterRefused."""
    if seen is None:
        return None
    holder, left_s = seen.holder, seen.holder.expiry_s - seen.age_s
    if not holder.is_released and left_s > 0:
        raise WriterRefused(
            f"run {holder.run_id} on {holder.host} is writing to {uri}, last seen {seen.age_s:.0f} s ago; run this one "
            f"again when it has ended, or, if it died, in {left_s:.0f} s"
        )
    return seen.tag


def take(lock: LockObject, mine: Holder, uri: str) -> str:
    """Take the lock; returns its tag. Raises WriterRefused, and StoreRefused where the store ignores conditions."""
    tag = write(lock, mine, tag=free_tag(lock.read(), uri))
    if tag is None:
        free_tag(lock.read(), uri)
        raise WriterRefused(f"another run began to write to {uri} at the same moment; run this one again")
    if lock.write(replace(mine, beats=-1), tag=None) is not None:
        raise StoreRefused(f"{uri}: the store ignores If-None-Match, so it cannot keep two writers apart")
    return tag


def write(lock: LockObject, mine: Holder, *, tag: str | None) -> str | None:
    """`lock.write`, where a repeated request may find that the first had arrived: what is there is mine then."""
    written = lock.write(mine, tag=tag)
    if written is None and (seen := lock.read()) is not None and seen.holder == mine:
        return seen.tag
    return written


_owners: dict[str, tuple[str, Callable[[], None]]] = {}  # lakes this process writes: the owner, and its check


@contextmanager
def sole_writer(uri: str, *, run_id: str, heartbeat_s: float, expiry_s: float) -> Iterator[Callable[[], None]]:
    """Be the only driver that writes a lake, for a `with` block; within another such block of this process, too.

    Yields what is to be called before a commit: it raises WriterLost where another driver has taken over, or may do so
    before long and this one cannot say that it lives. Raises WriterRefused while another writes, StoreRefused.
    """
    if not needs_lock(uri):
        yield lambda: None
        return
    if uri in _owners:
        yield _owners[uri][1]
        return
    lock = S3Object(f"{uri}/{WRITER_LOCK}")
    with held(lock, uri, run_id=run_id, heartbeat_s=heartbeat_s, expiry_s=expiry_s) as (owner, check):
        _owners[uri] = (owner, check)
        try:
            yield check
        finally:
            del _owners[uri]


@contextmanager
def held(
    lock: LockObject, uri: str, *, run_id: str, heartbeat_s: float, expiry_s: float
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Hold a lock for a `with` block, its heart beating; yields the owner and the check of `sole_writer`."""
    mine = Holder(owner=secrets.token_hex(8), run_id=run_id, host=socket.gethostname(), expiry_s=expiry_s)
    began = clocks()
    state: dict[str, Any] = {"mine": mine, "tag": take(lock, mine, uri), "beaten": began, "is_lost": False}
    one_at_a_time = threading.Lock()

    def beat(*, is_released: bool = False) -> None:
        with one_at_a_time:
            if state["is_lost"]:
                return
            at = clocks()
            state["mine"] = replace(state["mine"], beats=state["mine"].beats + 1, is_released=is_released)
            tag = write(lock, state["mine"], tag=state["tag"])
            if tag is None:
                state["is_lost"] = True
            else:
                state["tag"], state["beaten"] = tag, at

    def check() -> None:
        if not state["is_lost"] and elapsed_s(state["beaten"]) >= expiry_s / 2:  # the rest is for the commit
            beat()
        if state["is_lost"]:
            raise WriterLost(f"another driver took over writing to {uri}; this one stops")

    def beat_quietly() -> None:
        with suppress(Exception):  # one missed beat is no reason to stop; `check` looks how long ago the last one was
            beat()

    try:
        with polling(beat_quietly, every_s=heartbeat_s, name="writer lock"):
            yield mine.owner, check
    finally:
        with suppress(Exception):  # it expires
            beat(is_released=True)


def check_same_store(uri: str, read_text: Callable[[str], str]) -> None:
    """That Spark, which reads by `read_text`, sees the lock that this process holds; raises StoreRefused."""
    if uri not in _owners:
        return
    if json.loads(read_text(f"{uri}/{WRITER_LOCK}") or "{}").get("owner") != _owners[uri][0]:
        raise StoreRefused(
            f"{uri} is not the same place for Spark and for Python; give the endpoint once, by AWS_ENDPOINT_URL, and "
            "not by spark.hadoop.fs.s3a.endpoint"
        )


class S3Object:
    """An object of S3 by s3fs, which has the credentials, the endpoint and the retries."""

    def __init__(self, uri: str) -> None:
        """Raises StoreRefused where s3fs is not installed."""
        self.uri = uri
        self._filesystem, path = open_store(uri)
        bucket, key, _ = self._filesystem.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}

    def read(self) -> Seen | None:
        """The object; None where it is not there."""
        from fsspec.asyn import sync

        try:
            answer, data = sync(self._filesystem.loop, self._get)
        except Exception as e:
            if _code(e) == "NoSuchKey":
                return None
            raise refusal(self.uri, e) or e from e
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        try:
            holder = Holder(**json.loads(data))
        except (ValueError, TypeError) as e:
            raise StoreRefused(f"{self.uri} is no lock of this code: {data[:100]!r}; remove it if nobody writes") from e
        return Seen(holder=holder, tag=answer["ETag"], age_s=(now - answer["LastModified"]).total_seconds())

    async def _get(self) -> tuple[dict[str, Any], bytes]:
        answer = await self._filesystem._call_s3("get_object", **self._place)
        async with answer["Body"] as body:
            return answer, await body.read()

    def write(self, holder: Holder, *, tag: str | None) -> str | None:
        """The new tag; None, and nothing written, unless it is still at `tag`, or not there for a tag of None."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        body = json.dumps(asdict(holder)).encode()
        for left in reversed(range(CONFLICT_ATTEMPTS)):
            try:
                return str(self._filesystem.call_s3("put_object", **self._place, Body=body, **condition)["ETag"])
            except Exception as e:
                if _code(e) in CONFLICTS and left:
                    time.sleep(0.5)
                elif _code(e) in (*NOT_AS_EXPECTED, *CONFLICTS):
                    return None
                else:
                    raise refusal(self.uri, e) or e from e
        raise AssertionError("unreachable")


def _code(error: BaseException) -> str | None:
    code: str | None = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    return code
