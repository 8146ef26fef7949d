"""A standalone Spark cluster on this machine, each of it a process of its own. Knows of the jobs only the demo.

`python -m tests.cluster [--gpus]` keeps one until Ctrl-C; `python -m tests.cluster demo` runs the demo on one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.session import LOCAL_JAVA_OPTIONS, jars
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "cluster"
ZIP = ROOT / "build" / "lakelens.zip"
HOST, PORT, PAGE = "127.0.0.1", 7077, 8080
N_WORKERS = 2
WORKER_MEMORY = "1g"  # what a worker lends to executors, whose heap it is; their Python workers take theirs beside it
PATIENCE_S = 120
# On the few cores of one machine, as jobs.session has it for a local master.
SMALL = {
    "spark.executor.memory": WORKER_MEMORY,
    "spark.executor.extraJavaOptions": " ".join(LOCAL_JAVA_OPTIONS),
    "spark.driver.extraJavaOptions": " ".join(
        [*LOCAL_JAVA_OPTIONS, f"-Dlog4j2.configurationFile={(ROOT / 'jobs' / 'log4j2.properties').as_uri()}"]
    ),
    "spark.sql.shuffle.partitions": str(N_WORKERS),
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
}


class ClusterError(RuntimeError):
    """The cluster is not up; the message says which process ended, or what was waited for."""


@dataclass(frozen=True)
class Cluster:
    """A master, its workers and what was submitted, each the leader of a session of processes, executors among them."""

    url: str
    page: str
    workers: Sequence[subprocess.Popen[bytes]]
    started: list[subprocess.Popen[bytes]]


def environment() -> dict[str, str]:
    """Of the processes of a cluster and those that submit to it: this Python, this machine, no code but the zip's."""
    import pyspark

    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    home = str(Path(pyspark.__file__).parent)
    return inherited | {"SPARK_HOME": home, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": HOST}


def submit(
    up: Cluster, *arguments: str, code: Path = ZIP, log: Path | None = None, **added: str
) -> subprocess.Popen[bytes]:
    """Run `lakelens ARGUMENTS` on a cluster, its code out of a zip; ends with the cluster at the latest.

    log: takes its output, which is shown otherwise. added: environment of the driver.
    """
    environ = environment() | added
    command = [f"{environ['SPARK_HOME']}/bin/spark-submit", "--master", up.url]
    command += ["--py-files", str(code), "--jars", ",".join(map(str, jars()))]
    command += [part for key, value in SMALL.items() for part in ("--conf", f"{key}={value}")]
    with log.open("ab") if log is not None else nullcontext() as output:
        process = subprocess.Popen(
            [*command, str(ROOT / "jobs" / "__main__.py"), *arguments],
            cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    up.started.append(process)
    return process


def port_of(wanted: int) -> int:
    """`wanted`, or any port for 0; raises ClusterError where it is taken, for Spark would try the next one."""
    try:
        return free_port(wanted)
    except OSError as e:
        raise ClusterError(f"port {wanted} of {HOST} cannot be listened on ({e}); end what uses it") from e


def session_of(leader: int) -> list[psutil.Process]:
    """The processes of the session that a process began, also those that outlived it."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to end, as Ctrl-C does, and kill what is left after a few seconds."""
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        # An id that is taken although its process has ended is somebody else's by now.
        ours = [one.pid for one in started if one.poll() is None or not psutil.pid_exists(one.pid)]
        left = [member for leader in ours for member in session_of(leader)]
        for member in left:
            try:
                member.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=patience_s)
    for process in started:
        process.wait()


def _start(folder: Path, name: str, what: str, *arguments: str, **added: str) -> subprocess.Popen[bytes]:
    environ = environment() | {"SPARK_DAEMON_JAVA_OPTS": " ".join(LOCAL_JAVA_OPTIONS)} | added
    command = [f"{environ['SPARK_HOME']}/bin/spark-class", f"org.apache.spark.deploy.{what}", "--host", HOST]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, *arguments], cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def fake_gpu(folder: Path, number: int) -> dict[str, str]:
    """Environment of a worker that finds one GPU by jobs/find_gpus.sh, which an nvidia-smi of ours tells of."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho {number}\n")
    program.chmod(0o755)
    found_by = f"-Dspark.worker.resource.gpu.discoveryScript={ROOT / 'jobs' / 'find_gpus.sh'}"
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SPARK_WORKER_OPTS": f"-Dspark.worker.resource.gpu.amount=1 {found_by}",
    }


def state(page: str) -> dict[str, Any]:
    """What the master's page tells as JSON; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"{page}/json/", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except OSError:
        return {}


@contextmanager
def cluster(folder: Path, *, gpus: bool = False, port: int = 0, page_port: int = 0) -> Iterator[Cluster]:
    """A cluster of N_WORKERS with one core each while the block runs; logs and work folders are kept in `folder`.

    gpus: each worker says that it has one GPU, the first "0", the second "1". Ports: 0 for any free one.
    Raises ClusterError where it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = f"spark://{HOST}:{port_of(port)}"
    page = f"http://{HOST}:{port_of(page_port)}"
    started: list[subprocess.Popen[bytes]] = []
    try:
        ports = ["--port", url.rpartition(":")[2], "--webui-port", page.rpartition(":")[2]]
        started.append(_start(folder, "master", "master.Master", *ports))
        for number in range(N_WORKERS):
            name = f"worker-{number}"
            gpu = fake_gpu(folder / f"gpu-{number}", number) if gpus else {}
            given = ["--webui-port", "0", "--cores", "1", "--memory", WORKER_MEMORY, "--work-dir", str(folder / name)]
            started.append(_start(folder, name, "worker.Worker", *given, url, **gpu))
        until = time.monotonic() + PATIENCE_S
        while state(page).get("aliveworkers") != N_WORKERS:
            ended = [process for process in started if process.poll() is not None]
            if ended or time.monotonic() > until:
                what = f"a process ended with {ended[0].returncode}" if ended else f"not up after {PATIENCE_S} s"
                raise ClusterError(f"cluster at {url}: {what}; see the logs in {folder}")
            time.sleep(0.2)
        yield Cluster(url, page, started[1:], started)
    finally:
        _end(started)


def keep(*, gpus: bool) -> None:
    """A cluster on the usual ports until a signal ends it."""
    with cluster(FOLDER, gpus=gpus, port=PORT, page_port=PAGE) as up:
        lent = ", one GPU said to be in each (spark.worker.resource.gpu.amount=1)" if gpus else ""
        print(f"{N_WORKERS} workers of one core and {WORKER_MEMORY} at {up.url}{lent}; the master's page: {up.page}")
        print(f"logs in {FOLDER}; Ctrl-C ends it", flush=True)
        while True:
            for process in up.workers:
                if process.poll() is not None:
                    raise ClusterError(f"a worker ended with {process.returncode}; see the logs in {FOLDER}")
            time.sleep(1)


def run_demo() -> int:
    """The demo on a cluster of its own, into a lake of its own; prints what the lake holds, returns an exit code."""
    from deltalake import DeltaTable

    from schemas import TABLES

    lake = FOLDER / "lake"
    shutil.rmtree(FOLDER, ignore_errors=True)
    began = time.monotonic()
    with cluster(FOLDER) as up:
        print(f"{N_WORKERS} workers at {up.url} after {time.monotonic() - began:.0f} s", flush=True)
        if code := submit(up, "demo", "--lake", str(lake)).wait():
            return code
    executors = len(list(FOLDER.glob("worker-*/app-*/*")))
    rows = {table.name: DeltaTable(str(lake / table.name)).to_pyarrow_dataset().count_rows() for table in TABLES}
    print(f"the lake at {lake}, by {executors} executors: " + ", ".join(f"{n} {name}" for name, n in rows.items()))
    print(f"demo on a cluster: {time.monotonic() - began:.0f} s")
    return 0 if rows["features"] and executors == N_WORKERS else 1


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where the cluster or the demo failed, 2 for other arguments."""
    if arguments not in ([], ["--gpus"], ["demo"]):
        print(f"python -m tests.cluster {' '.join(arguments)}: allowed: nothing, --gpus or demo", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell without job control has its jobs ignore
    try:
        if arguments == ["demo"]:
            return run_demo()
        keep(gpus="--gpus" in arguments)
    except ClusterError as e:
        print(e, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
