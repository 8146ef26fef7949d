"""A `lakelens` command as a process: its run id, its lines, its outcome and its end. Knows no Airflow and no job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MAX_RUN_ID = 180  # characters; Lakelens allows 200
GRACE_S = 3.0  # Airflow kills a task 5 s after it told it to end


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code, its last line, and what `--json` told."""

    exit_code: int
    message: str
    facts: dict[str, Any] = field(default_factory=dict)


def run_id_of(dag_id: str, *, airflow_run_id: str, interval_start: datetime | None) -> str:
    """The `--run-id` of a DAG run: of its data interval, so that an interval done again is resumed, not repeated.

    interval_start: None for runs that stand for no interval of their own (triggered by hand or by an asset); these are
    named after Airflow's run id.
    """
    name = dag_id.removeprefix("lakelens_")
    if interval_start is not None:
        return f"{name}-{interval_start.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    return allowed_run_id(f"{name}-{airflow_run_id}")


def allowed_run_id(name: str) -> str:
    """`name` in the characters that `--run-id` allows; a long one is cut, and told from others by a digest."""
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_+.-]", "-", name))
    if len(plain) <= MAX_RUN_ID:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{plain[: MAX_RUN_ID - 17]}-{digest}"


def command_line(
    command: Sequence[str], job: str, options: Sequence[str], *, lake: str, conf: Sequence[str], run_id: str | None
) -> list[str]:
    """What is executed; `command` is how `lakelens` is called here."""
    files = [part for file in conf for part in ("--conf", file)]
    named = ["--run-id", run_id] if run_id is not None else []
    return [*command, job, *options, "--lake", lake, *files, *named, "--json"]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command as the leader of a process group of its own, both its streams in one pipe.

    It can be interrupted, although what a shell without job control starts in the background, such as a scheduler, and
    all that this starts, ignores SIGINT.
    """
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def follow(process: subprocess.Popen[str], say: Callable[[str], None]) -> Outcome:
    """Pass each line on to `say` as it comes, until the command has ended; nothing that it started outlives this."""
    last, facts = "", dict[str, Any]()
    threading.Thread(target=_tidy, args=[process], daemon=True).start()
    try:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if line:
                say(line)
                last = line
                facts = _told(line) or facts
        exit_code = process.wait()
    finally:
        end(process)
    return Outcome(exit_code=exit_code, message=str(facts.get("message", last)), facts=facts)


def _tidy(process: subprocess.Popen[str]) -> None:
    """Kill what a command leaves behind: it may hold the pipe, which would then never come to its end."""
    process.wait()
    _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _told(line: str) -> dict[str, Any] | None:
    """The outcome that `--json` prints, None for any other line; Java may still print some after it."""
    with suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and "exit_code" in told:
            return told
    return None


def end(process: subprocess.Popen[str]) -> None:
    """End the command and its whole process group. Interrupted, it frees its lease if it can do so in GRACE_S."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    _kill(process)
