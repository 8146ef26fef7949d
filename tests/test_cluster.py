"""A cluster of real processes, its code out of a zip: the rows of a local master, also where a worker is killed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from tests.attempts import Rows, assert_same, checkout_with_one_more_featurizer, tables_of
from tests.cluster import HOST, ROOT, ClusterError, cluster, environment, session_of, state, submit
from tests.pictures import encode

PATIENCE_S = 280
RECIPES = ROOT / "docs" / "cluster.md"
SITE = [  # of the sample media: photographs in several formats, broken files, clips of two seconds
    *("table/coffee-full.jpg", "table/coffee-png.png", "table/coffee-webp.webp", "table/coffee-turned6.jpg"),
    *("table/coffee-gif.gif", "table/coffee-progressive.jpg", "table/clock-full.jpg", "table/clock-png-grey.png"),
    *("table/coins-full.jpg", "table/coins-crop-left.jpg", "table/coffee-dark.jpg", "table/coffee-small.jpg"),
    *("broken/cut-30.jpg", "broken/cut.png", "broken/bomb.png", "broken/header-only.jpg", "broken/zero.jpg"),
    *("broken/error-page.jpg", "clips/upright.mp4", "broken/no-index.mp4"),
]
MODELS = ("concept_efficientnet.lite0@1", "object_yolov3.tiny@1")
N_COLOURS = 60


def packed(checkout: Path, path: Path) -> Path:
    """The code of a checkout as `make zip` packs it."""
    folders = ("jobs", "featurizers", "schemas", "conf")
    with zipfile.ZipFile(path, "w") as code:
        for file in sorted(file for folder in folders for file in (checkout / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                code.write(file, file.relative_to(checkout))
    return path


def pipeline(folder: Path, featurizers: tuple[str, ...]) -> Path:
    """The configuration for the pictures of folder/pictures: no gate rejects what is broken."""
    path = folder / "pipeline.yaml"
    budget = {"documents": 1, "features": 1, "mentions": 1}
    sources = [{"name": "pictures", "kind": "folder", "uri": str(folder / "pictures")}]
    featurize = {"featurizers": list(featurizers), "link_captions": False}
    path.write_text(
        yaml.safe_dump({"crawl": {"sources": sources}, "featurize": featurize, "check": {"max_error_rate": budget}})
    )
    return path


def run_locally(checkout: Path, folder: Path, job: str, lake: Path, *assignments: str, **added: str) -> None:
    """`lakelens JOB` over the pipeline of `folder`, in a process of its own, its code out of a checkout."""
    environ = os.environ | {"PYTHONPATH": str(checkout), "SPARK_LOCAL_IP": HOST} | added
    command = [sys.executable, "-m", "jobs", job, "--conf", str(folder / "pipeline.yaml"), "--lake", str(lake)]
    command += [part for assignment in assignments for part in ("--set", assignment)]
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def everything(lake: Path) -> dict[str, Rows]:
    """The rows of frames and features, and what became of each document."""
    from deltalake import DeltaTable

    documents = DeltaTable(str(lake / "documents")).to_pyarrow_table().to_pylist()
    became = {(row["doc_id"],): (row["url"], row["media_id"], row["media_type"], row["error"]) for row in documents}
    assert len(became) == len(documents)
    return tables_of(lake) | {"documents": became}


def assert_all_the_same(one: dict[str, Rows], other: dict[str, Rows]) -> None:
    assert_same(one, other)
    assert one["documents"] == other["documents"]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(ROOT, tmp_path_factory.mktemp("code") / "lakelens.zip")


# -- what is looked at without a cluster --------------------------------------------------------------------------


def test_from_a_zip_the_configuration_the_pages_and_the_demo_are_read(code: Path) -> None:
    program = f"""
import jobs.sample_media
from pathlib import Path
from featurizers.spec import families, find_spec
from jobs.config import load_config
from jobs.demo import demo_overrides
from jobs.report import pages
assert jobs.__file__.startswith({str(code)!r}), jobs.__file__
for name in ("urls", "linked", "listed"):
    Path(name + ".jsonl").touch()
print(load_config().prices.usd_per_core_hour > 0, len(jobs.sample_media.sample_version()))
print(len(demo_overrides(Path(), "http://127.0.0.1:1")["golden"]))
print(bool(pages().get_template("page.css.j2")), find_spec({MODELS[0]!r}).dim, "concept_efficientnet" in families())
print(jobs.sample_media.sample_folder())
"""
    environ = os.environ | {"PYTHONPATH": str(code), "LAKELENS_CACHE": "/kept"}
    done = subprocess.run([sys.executable, "-c", program], cwd=code.parent, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 16", "4", "True 1280 True", "/kept/sample"]


def commands() -> list[str]:
    """The blocks of docs/cluster.md."""
    return re.findall(r"^```\n(.*?)^```$", RECIPES.read_text(), re.M | re.S)


def settings_named(text: str) -> set[str]:
    """spark.* keys as they are set; not those of our own configuration, such as spark.gpus."""
    return set(re.findall(r"\b(spark\.\w+(?:\.\w+)+)=", text))


@pytest.mark.parametrize("role", ["driver", "executor"])
def test_a_pod_template_is_a_pod_whose_container_spark_knows_and_that_runs_as_the_images_user(role: str) -> None:
    pod = yaml.safe_load((ROOT / "conf" / "kubernetes" / f"{role}.yaml").read_text())
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    [container] = pod["spec"]["containers"]
    assert container["name"] == f"spark-kubernetes-{role}"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    user = pod["spec"]["securityContext"]["runAsUser"]
    assert f"useradd --uid {user} " in (ROOT / "conf" / "kubernetes" / "Dockerfile").read_text()


def test_no_recipe_limits_the_address_space_of_python_workers() -> None:
    assert len(settings_named("".join(commands()))) >= 15
    assert "spark.executor.pyspark.memory" not in settings_named(RECIPES.read_text())


def test_a_taken_port_is_named_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"^port {number} of {HOST} cannot be listened on"),
            cluster(tmp_path, port=number),
        ):
            pytest.fail("a cluster is up")
    assert not list(tmp_path.glob("*.log"))


# -- the recipes, by what of Spark is here -------------------------------------------------------------------------


def test_spark_knows_every_setting_of_the_recipes() -> None:
    classes = bytearray()
    for name in ("core", "kubernetes", "yarn", "common-utils"):
        [path] = Path(environment()["SPARK_HOME"], "jars").glob(f"spark-{name}_*.jar")
        with zipfile.ZipFile(path) as jar:
            for member in jar.namelist():
                classes += jar.read(member) if member.endswith(".class") else b""
    composed = re.compile(
        r"(spark\.executorEnv|spark\.yarn\.appMasterEnv)\.\w+|(spark\.\w+)\.resource\.gpu\.(\w+)|"
        r"(spark\.kubernetes\.authenticate\.driver)\.(\w+)"
    )
    for key in settings_named(RECIPES.read_text()):
        found = composed.fullmatch(key)
        parts = [part for part in found.groups() if part] if found else [key]
        assert [part for part in parts if part.encode() not in classes] == [], key


class ApiServer(BaseHTTPRequestHandler):
    """Of Kubernetes what submitting needs: whatever is created is taken and kept, there is nothing else."""

    created: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.created.append(body)
        self.answer(201, body | {"metadata": body["metadata"] | {"uid": "1", "resourceVersion": "1"}})

    def do_GET(self) -> None:
        self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

    do_PATCH = do_PUT = do_POST

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what was created is the record."""


@pytest.mark.cluster
def test_spark_makes_the_drivers_pod_of_the_kubernetes_recipe(tmp_path: Path) -> None:
    [command] = [block for block in commands() if "--master k8s://" in block]
    handler = type("Handler", (ApiServer,), {"created": []})
    server = ThreadingHTTPServer((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        [program, *arguments] = shlex.split(command.replace("\\\n", " "))
        given = [a if not a.startswith("k8s://") else f"k8s://http://{HOST}:{server.server_port}" for a in arguments]
        environ = environment() | {"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
        done = subprocess.run(
            [f"{environ['SPARK_HOME']}/bin/{Path(program).name}", *given],
            cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-5000:]
    [pod] = [one for one in handler.created if one["kind"] == "Pod"]
    [container] = pod["spec"]["containers"]
    assert pod["metadata"]["labels"]["app"] == "lakelens" and pod["spec"]["serviceAccountName"] == "lakelens"
    assert container["image"] == "registry.example.org/lakelens:1"
    assert {"cache", "pipeline"} <= {mount["name"] for mount in container["volumeMounts"]}
    said = ["run", "/pipeline/photos.yaml", "--conf", "/pipeline/s3.yaml", "--lake", "s3a://bucket/lake"]
    said += ["--run-id", "photos-1"]
    assert container["args"][-len(said) :] == said
    assert container["resources"]["limits"]["memory"] == "3072Mi"


# -- the same rows everywhere -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures and clips of SITE, their pipeline, and a lake that they were crawled into."""
    from jobs.demo import prepared_sample

    folder = tmp_path_factory.mktemp("site")
    (folder / "pictures").mkdir()
    for name in SITE:
        shutil.copy(prepared_sample() / "site" / name, folder / "pictures" / name.replace("/", "-"))
    pipeline(folder, MODELS)
    run_locally(ROOT, folder, "crawl", folder / "lake", "spark.master=local[2]")
    return folder


def featurized(pictures: Path, lake: Path, master: str) -> dict[str, Rows]:
    """What `lakelens featurize` makes of a copy of the crawled lake."""
    shutil.copytree(pictures / "lake", lake)
    settings = "spark.settings={spark.executor.memory: 1g, spark.sql.shuffle.partitions: '2'}"
    run_locally(ROOT, pictures, "featurize", lake, f"spark.master={master}", settings)
    return everything(lake)


@pytest.fixture(scope="module")
def on_one_core(pictures: Path) -> dict[str, Rows]:
    rows = featurized(pictures, pictures / "local", "local[1]")
    codes = {row["error"]["code"] for row in rows["features"].values() if row["error"] is not None}
    assert len(rows["documents"]) == len(SITE) and {"truncated", "pixel_limit"} <= codes
    assert {key[2] for key, row in rows["features"].items() if row["features"]} == set(MODELS)
    assert any(key[1] > 0 for key in rows["frames"]), "no frame of a clip"
    return rows


@pytest.mark.cluster
@pytest.mark.parametrize("master", ["local[2]", "local-cluster[2,1,1024]"])
def test_a_local_master_gives_the_rows_of_one_core(
    on_one_core: dict[str, Rows], pictures: Path, tmp_path: Path, master: str
) -> None:
    assert_all_the_same(featurized(pictures, tmp_path / "lake", master), on_one_core)


@pytest.mark.cluster
def test_a_cluster_that_crawls_and_featurizes_gives_the_rows_of_one_core(
    on_one_core: dict[str, Rows], pictures: Path, code: Path, tmp_path: Path
) -> None:
    log = tmp_path / "driver.log"
    with cluster(tmp_path) as up:
        arguments = ["run", str(pictures / "pipeline.yaml"), "--lake", str(tmp_path / "lake")]
        assert submit(up, *arguments, code=code, log=log).wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        assert len(list(tmp_path.glob("worker-*/app-*/*"))) == 2, "not both workers had an executor"
    assert_all_the_same(everything(tmp_path / "lake"), on_one_core)
    assert list((tmp_path / "lake" / "_weights").glob("*/_SUCCESS")), "tasks had weights from the driver's disk"


# -- GPUs that are only said to be there, and a worker that is killed ----------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with concept_faulty, its zip, pictures of one colour each, one of them cut, crawled into a lake."""
    folder = tmp_path_factory.mktemp("colours")
    packed(checkout_with_one_more_featurizer(folder / "checkout"), folder / "code.zip")
    (folder / "pictures").mkdir()
    for i in range(N_COLOURS):
        data = encode(np.full((32, 32, 3), (10 + 4 * i, 120, 90), np.uint8), "PNG")
        (folder / "pictures" / f"{i}.png").write_bytes(data[: len(data) // 2] if i == 7 else data)
    pipeline(folder, ("concept_faulty.mean@1",))
    run_locally(ROOT, folder, "crawl", folder / "lake", "spark.master=local[2]")
    return folder


@pytest.mark.cluster
def test_tasks_get_the_gpu_of_their_worker_and_a_worker_killed_in_mid_run_changes_no_row(
    colours: Path, tmp_path: Path
) -> None:
    undisturbed, lake, told = tmp_path / "undisturbed", tmp_path / "lake", tmp_path / "fault"
    for copy in (undisturbed, lake):
        shutil.copytree(colours / "lake", copy)
    (tmp_path / "nothing").mkdir()
    fault = str(tmp_path / "nothing" / "told")
    run_locally(colours / "checkout", colours, "featurize", undisturbed, "spark.master=local[2]", LAKELENS_FAULT=fault)
    told.write_text("slow")  # a second or more for each GPU
    log, devices = tmp_path / "driver.log", tmp_path / "devices"
    spark = {"spark.executor.cores": "1", "spark.executorEnv.LAKELENS_FAULT": str(told)}
    settings = ["spark.gpus=2", "spark.gpu_kind=l4", f"spark.settings={json.dumps(spark)}"]
    with cluster(tmp_path, gpus=True) as up:
        arguments = ["featurize", "--conf", str(colours / "pipeline.yaml"), "--lake", str(lake)]
        arguments += [part for setting in settings for part in ("--set", setting)]
        driver = submit(up, *arguments, code=colours / "code.zip", log=log, LAKELENS_FAULT=str(told))
        until = time.monotonic() + PATIENCE_S
        while driver.poll() is None and time.monotonic() < until and n_lines(devices) < 2:
            time.sleep(0.02)
        assert n_lines(devices) == 2, log.read_text()[-5000:]
        assert sorted(devices.read_text().split()) == ["cuda:0", "cuda:1"]
        up.workers[1].send_signal(signal.SIGKILL)
        assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        assert state(up.page)["aliveworkers"] == 1
    assert "Lost executor" in log.read_text()
    rows = everything(lake)
    assert len(rows["features"]) == N_COLOURS
    assert_all_the_same(rows, everything(undisturbed))


def n_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


# -- its end -----------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_make_cluster_ends_all_of_its_processes(number: signal.Signals) -> None:
    kept = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "--gpus"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        assert kept.stdout is not None
        said = kept.stdout.readline()
        assert "2 workers of one core" in said and "spark://127.0.0.1:7077" in said
        children = psutil.Process(kept.pid).children(recursive=True)
        family = [one for one in children if one.status() != psutil.STATUS_ZOMBIE]
        assert sum("deploy.worker.Worker" in " ".join(one.cmdline()) for one in family) == 2
        listening = {one.laddr.ip for process in family for one in process.net_connections() if one.status == "LISTEN"}
        assert {address.removeprefix("::ffff:") for address in listening} == {HOST}
        kept.send_signal(number)
        assert kept.wait(60) == (0 if number == signal.SIGINT else 1)
        assert not psutil.wait_procs(family, timeout=1)[1]
    finally:
        for member in [*session_of(kept.pid), *family]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        kept.wait()
