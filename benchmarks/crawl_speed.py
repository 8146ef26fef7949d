"""Row C1: what a fetched picture of 100 KB costs on loopback, where hosts are fast and owe no pause. Knows no network.

C1 is CPU time against img2dataset's downloader, C1.core images a second of the fetcher alone, C1.job of a whole
`lakelens crawl` with its tables. The server (`benchmarks.picture_server`) has the same two cores; its CPU is in no
figure of C1, but in the wall time of C1.core and C1.job.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from benchmarks import picture_server
from benchmarks.measure import BUILD, REPOSITORY, cores, interleaved, median_cpu_ms, running, together
from benchmarks.pipeline import installed, measured
from benchmarks.row import Row, machine, not_measured

PEER_PACKAGES = ("img2dataset==1.47.0", "psutil==7.2.2")
PEERS = REPOSITORY / "build" / "peers-crawl"
N_HOSTS = 50
PER_LIST = 200
N_LISTS = 40
FEW = 5  # lists of the shorter run, which is taken off the longer one
N_ROUNDS = 3  # each starts img2dataset's processes three times, which takes longer than its images
CONNECTIONS_PER_HOST = 8
N_JOB = 60_000  # two waves of two cores
REACH = 10.0  # of C1: times less CPU
CORE_PER_S, JOB_PER_S = 1500.0, 400.0
WHAT = "fetching a 100 KB picture on loopback"
PEER_TASK = {"processes": 1, "threads": 256, "per_shard": 10_000, "exif": True}  # its defaults; we read EXIF too


def hosts_at(port: int) -> list[str]:
    """The server's hosts: as many loopback addresses, which are sites of their own."""
    return [f"127.0.1.{number + 1}:{port}" for number in range(N_HOSTS)]


def url_lists(folder: Path, hosts: Sequence[str], name: str) -> list[str]:
    """N_LISTS files of PER_LIST URLs, no URL twice, the hosts in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{number:03d}.txt" for number in range(N_LISTS)]
    for path in paths:
        urls = (f"http://{hosts[n % len(hosts)]}/{path.stem}/{n}.jpg" for n in range(PER_LIST))
        path.write_text("\n".join(urls) + "\n")
    return list(map(str, paths))


def task_of(folder: Path, hosts: Sequence[str], name: str) -> dict[str, object]:
    """What an engine is told."""
    return {
        "media": url_lists(folder, hosts, name),
        "hosts": list(hosts),
        "connections_per_host": CONNECTIONS_PER_HOST,
        "connections": 64,
        "folder": str(folder),
    }


# -- the fetcher alone ------------------------------------------------------------------------------------------------


def cpu_row(folder: Path, hosts: Sequence[str]) -> Row:
    """C1, the two in turn."""
    task, where = task_of(folder, hosts, "cpu"), cores()
    what, unit = f"{WHAT}, against img2dataset's downloader", "cpu_ms/image"
    try:
        python = installed(PEERS, PEER_PACKAGES)
        with (
            running("C1.ours", Path(sys.executable), "fetch_core", task, where=where) as ours,
            running("C1.peer", python, "img2dataset_engine", task | PEER_TASK, where=where) as peer,
        ):
            ended = interleaved([ours, peer], FEW, N_LISTS, images_per_file=PER_LIST, n_rounds=N_ROUNDS)
            if ended:
                raise RuntimeError(str(ended))
    except RuntimeError as e:
        return not_measured("C1", what, unit=unit, reach=REACH, reason=str(e))
    our_ms, peer_ms = median_cpu_ms(ours), median_cpu_ms(peer)
    return Row(
        id="C1",
        what=what,
        unit=unit,
        ours=round(our_ms, 3),
        peer=round(peer_ms, 3),
        ratio=round(peer_ms / our_ms, 3),
        reach=REACH,
        peer_version=f"img2dataset {peer.answer['versions']['img2dataset']}",
        settings={
            "n_images": [FEW * PER_LIST, N_LISTS * PER_LIST],
            "rounds": N_ROUNDS,
            "peer_settings": PEER_TASK,
            "ours": measured(ours) | {"cpu_ms_of_turns": [round(turn.cpu_ms, 3) for turn in ours.turns]},
            "peer": measured(peer) | {"cpu_ms_of_turns": [round(turn.cpu_ms, 3) for turn in peer.turns]},
            "n_hosts": len(hosts),
            "cores": where,
            **machine(),
        },
    )


def core_row(folder: Path, hosts: Sequence[str]) -> Row:
    """C1.core: one fetcher, and two at once, each with half of the hosts; the better is the figure."""
    where, n_images = cores(), N_LISTS * PER_LIST
    with ExitStack() as stack:
        halves = [
            stack.enter_context(
                running(
                    f"C1.core-{half}",
                    Path(sys.executable),
                    "fetch_core",
                    task_of(folder, hosts[half::2], f"core-{half}"),
                    where=where,
                )
            )
            for half in range(2)
        ]
        one, two = [], []
        for _ in range(N_ROUNDS):
            one.append(n_images / together(halves[:1], N_LISTS))
            two.append(2 * n_images / together(halves, N_LISTS))
    per_s = {1: statistics.median(one), 2: statistics.median(two)}
    return at_least(
        "C1.core",
        f"{WHAT}, the fetcher alone",
        max(per_s.values()),
        CORE_PER_S,
        {
            "images_per_s_of_1_process": [round(value) for value in one],
            "images_per_s_of_2_processes": [round(value) for value in two],
            "n_images": n_images,
        },
    )


# -- the whole job ----------------------------------------------------------------------------------------------------


def job_row(folder: Path, hosts: Sequence[str], n_images: int = N_JOB) -> Row:
    """C1.job: `lakelens crawl` into a new lake, in a process of its own.

    Its figure is documents over the seconds from the begin of the first wave to the run's end: planning, which is of
    all sources, and the start of Spark stand in `settings`.
    """
    lake = folder / "lake"
    shutil.rmtree(lake, ignore_errors=True)
    listed, settings, log = folder / "job.txt", folder / "job.yaml", BUILD / "C1.job.log"
    urls = (f"http://{hosts[n % len(hosts)]}/job/{n}.jpg" for n in range(n_images))
    listed.write_text("\n".join(urls) + "\n")
    crawl = {
        "sources": [{"name": "web", "kind": "urls", "uri": str(listed)}],
        "delay_s": 0.0,
        "max_connections_per_host": CONNECTIONS_PER_HOST,
        "allow_addresses": list(hosts),
    }
    settings.write_text(json.dumps({"crawl": crawl, "spark": {"log": "json"}}))
    command = [sys.executable, "-m", "jobs", "crawl", "--lake", str(lake), "--conf", str(settings), "--json"]
    started = time.time()
    with log.open("w") as said:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=said, text=True, check=False)
    ended = time.time()
    shutil.rmtree(lake, ignore_errors=True)
    if done.returncode:
        return not_measured("C1.job", f"{WHAT}, the whole job", unit="images/s", reach=1, reason=done.stdout[-300:])
    steps = steps_of(log.read_text(errors="replace"))
    first_wave = min(at for at, said in steps if said.startswith("crawling"))
    return at_least(
        "C1.job",
        f"{WHAT}, `lakelens crawl` with its tables",
        n_images / (ended - first_wave),
        JOB_PER_S,
        {
            "n_images": n_images,
            "before_the_first_wave_s": round(first_wave - started, 1),
            "from_the_first_wave_s": round(ended - first_wave, 1),
            "images_per_s_of_all": round(n_images / (ended - started), 1),
            **shares_of(steps, ended, n_images),
            "said": json.loads(done.stdout.strip().splitlines()[-1])["message"].split(";")[0],
        },
    )


def shares_of(steps: Sequence[tuple[float, str]], ended: float, n_images: int) -> dict[str, object]:
    """Where the seconds from the first wave on go: fetched and staged, committed, the rest."""
    begins = [at for at, said in steps if said.startswith("crawling")]
    measuring = min(at for at, said in steps if said == "measuring")
    reporting = min(at for at, said in steps if said == "writing the report")
    fetch_s = 0.0
    for begin, end in zip(begins, [*begins[1:], measuring], strict=True):
        fetch_s += max(at for at, said in steps if said == "fetched" and begin <= at <= end) - begin
    waves_s = measuring - begins[0]
    return {
        "n_waves": len(begins),
        "fetch_and_stage_s": round(fetch_s, 1),
        "commit_s": round(waves_s - fetch_s, 1),
        "measure_s": round(reporting - measuring, 1),
        "report_and_end_s": round(ended - reporting, 1),
        "images_per_s_of_waves": round(n_images / waves_s, 1),
        "images_per_s_fetched_and_staged": round(n_images / fetch_s, 1),
    }


def steps_of(log: str) -> list[tuple[float, str]]:
    """When the driver said what, from its log in lines of JSON: seconds since 1970 and the message."""
    found = []
    for line in log.splitlines():
        try:
            said = json.loads(line)
            if said["logger"] == "lakelens":
                found.append((datetime.fromisoformat(said["ts"]).timestamp(), str(said["msg"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def at_least(row_id: str, what: str, per_s: float, reach_per_s: float, settings: Mapping[str, object]) -> Row:
    """A row of a rate that is to be reached."""
    return Row(
        id=row_id,
        what=what,
        unit="images/s",
        ours=round(per_s),
        peer=reach_per_s,
        ratio=round(per_s / reach_per_s, 3),
        reach=1,
        peer_version="the target",
        settings={**settings, "n_hosts": N_HOSTS, "cores": cores(), **machine()},
    )


def rows() -> list[Row]:
    """C1, C1.core and C1.job."""
    folder = BUILD / "crawl"
    folder.mkdir(parents=True, exist_ok=True)
    with picture_server.running() as port:
        hosts = hosts_at(port)
        return [cpu_row(folder, hosts), core_row(folder, hosts), job_row(folder, hosts)]
