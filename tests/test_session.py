"""The Spark session: what is checked before it starts, what is set, and that Delta works in it without a network."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
import zipfile
import zipimport
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import jobs.session
from jobs.config import Spark
from jobs.session import (
    DELTA_JARS,
    SessionError,
    check_java,
    class_archive,
    cpus_per_task,
    jars,
    java_command,
    keep_zip_listings,
    local_cores,
    memory_bytes,
    settings,
    submitted_settings,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def fake_java(folder: Path, version: str) -> str:
    """A program that answers `-version` as Java of that version does."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(("version", "major"), [("17.0.15", 17), ("21", 21), ("25-ea", 25)])
def test_java_17_and_newer_is_taken(version: str, major: int, tmp_path: Path) -> None:
    assert check_java(fake_java(tmp_path, version)) == major


@pytest.mark.parametrize(("version", "major"), [("1.8.0_292", 8), ("11.0.2", 11)])
def test_older_java_is_refused_by_its_version(version: str, major: int, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=f"^Java {major} is too old: Spark needs Java 17 or newer"):
        check_java(fake_java(tmp_path, version))


def test_absent_java_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SessionError, match=r"^Java is not installed; install Java 17 or newer, or set JAVA_HOME"):
        check_java()


def test_a_java_home_without_java_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SessionError, match=f"^Java cannot be run: .*{tmp_path}/bin/java"):
        check_java()


def test_a_missing_jar_is_named_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path))
    with pytest.raises(SessionError, match=r"delta-storage-4.4.0.jar.*run `make setup`"):
        jars()


def test_jars_of_a_store_that_are_missing_are_one_error_with_the_command_that_brings_them(
    some_jars: None, tmp_path: Path
) -> None:
    assert len(jars("file:///lake")) == len(jars("hdfs://host/lake")) == len(DELTA_JARS)
    with pytest.raises(SessionError, match=r"^a lake at s3a://bucket/lake needs 36 JARs.*run `make setup STORES=s3`$"):
        jars("s3a://bucket/lake")


@pytest.mark.parametrize(
    ("cores", "gigabytes", "cpus"),
    [(2, 24, 1), (2, 4, 2), (2, 1, 2), (16, 16, 2), (16, 64, 1), (8, 8, 2), (3, 4.5, 2), (1, 4, 1)],
)
def test_a_task_takes_more_cores_where_memory_is_short_of_a_worker_for_each(
    cores: int, gigabytes: float, cpus: int
) -> None:
    assert cpus_per_task(cores, int(gigabytes * 2**30)) == cpus


def test_memory_is_at_most_the_machines() -> None:
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert 0 < memory_bytes() <= total_kib * 1024


@pytest.mark.parametrize(
    ("groups", "file", "limit", "expected"),
    [
        ("0::/user/job", "sys/fs/cgroup/user/job/memory.max", "4294967296", 4 << 30),
        ("0::/user/job", "sys/fs/cgroup/user/job/memory.max", "max", None),
        ("5:memory:/job\n3:cpu,cpuacct:/", "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1073741824", 1 << 30),
        ("5:cpu,memory:/a:b\n0::/", "sys/fs/cgroup/memory/a:b/memory.limit_in_bytes", "1073741824", 1 << 30),
        ("5:memory:/job", "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712", None),
    ],
)
def test_a_control_group_of_either_version_limits_the_memory(
    groups: str, file: str, limit: str, expected: int | None, tmp_path: Path
) -> None:
    for name, text in (("proc/self/cgroup", groups), (file, limit)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory_bytes(tmp_path) == (expected if expected is not None else memory_bytes(tmp_path / "no groups"))


@pytest.mark.parametrize(
    ("master", "cores"),
    [("local", 1), ("local[3]", 3), ("local[4,2]", 4), ("spark://host:7077", None), ("local-cluster[1,1,512]", None)],
)
def test_cores_of_a_master(master: str, cores: int | None) -> None:
    assert local_cores(master) == cores


@pytest.fixture
def some_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with files named like the Delta JARs."""
    monkeypatch.setenv("LAKELENS_CACHE", str(tmp_path))
    from jobs.session import jar_folder

    jar_folder().mkdir(parents=True)
    for name in DELTA_JARS:
        (jar_folder() / name).touch()


@pytest.mark.usefixtures("some_jars")
def test_settings_of_the_configuration_win() -> None:
    chosen = settings(Spark(settings={"spark.sql.session.timeZone": "Europe/Oslo", "spark.ui.enabled": "true"}))
    assert chosen["spark.sql.session.timeZone"] == "Europe/Oslo"
    assert chosen["spark.ui.enabled"] == "true"


@pytest.mark.usefixtures("some_jars")
def test_an_archive_of_classes_is_used_where_there_is_one_and_is_no_trouble_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "an environment"))
    assert "SharedArchiveFile" not in settings(Spark())["spark.driver.extraJavaOptions"]
    class_archive().parent.mkdir()
    class_archive().write_bytes(b"of another Java")
    options = shlex.split(settings(Spark())["spark.driver.extraJavaOptions"])
    assert f"-XX:SharedArchiveFile={class_archive()}" in options
    started = subprocess.run([java_command(), *options, "-version"], capture_output=True, text=True)
    assert started.returncode == 0 and "warning" not in started.stdout + started.stderr
    assert "SharedArchiveFile" not in settings(Spark(master="spark://host:7077"))["spark.driver.extraJavaOptions"]


@pytest.mark.usefixtures("some_jars")
def test_a_cluster_keeps_its_own_parallelism_and_page() -> None:
    chosen = settings(Spark(master="spark://host:7077"))
    assert {"spark.sql.shuffle.partitions", "spark.ui.enabled"} & set(chosen) == set()
    assert chosen["spark.sql.execution.arrow.maxBytesPerBatch"] == "4m"


@pytest.mark.usefixtures("some_jars")
def test_the_address_space_of_python_workers_is_never_limited() -> None:
    # torch and CUDA reserve more address space than they use; that setting is a limit on exactly that
    assert "spark.executor.pyspark.memory" not in settings(Spark())


@pytest.mark.usefixtures("some_jars")
@pytest.mark.parametrize(
    ("master", "gpus", "cluster", "per_gpu"),
    [
        ("local[16]", 2, "local-cluster[1,16,2048]", "8"),
        ("local[7]", 2, "local-cluster[1,6,2048]", "3"),
        ("local[2]", 4, "local-cluster[1,4,4096]", "1"),
    ],
)
def test_each_gpu_of_a_machine_has_an_executor_and_one_task_with_all_its_cores(
    master: str, gpus: int, cluster: str, per_gpu: str
) -> None:
    chosen = settings(Spark(master=master, gpus=gpus))
    assert chosen["spark.master"] == cluster
    assert chosen["spark.executor.cores"] == chosen["spark.task.cpus"] == per_gpu
    assert chosen["spark.executor.resource.gpu.amount"] == chosen["spark.task.resource.gpu.amount"] == "1"
    assert chosen["spark.worker.resource.gpu.amount"] == str(gpus)


@pytest.mark.usefixtures("some_jars")
def test_each_gpu_of_a_cluster_has_a_task_with_the_cores_that_its_executor_is_said_to_have() -> None:
    cluster = "spark://host:7077"
    chosen = settings(Spark(master=cluster, gpus=8, settings={"spark.executor.cores": "12"}))
    assert (chosen["spark.master"], chosen["spark.task.cpus"]) == (cluster, "12")
    assert "spark.worker.resource.gpu.amount" not in chosen
    with pytest.raises(SessionError, match=r"^spark.gpus is 8: .* spark.settings: \{spark.executor.cores"):
        settings(Spark(master=cluster, gpus=8))


def test_the_master_that_spark_submit_was_given_stands_with_gpus_too() -> None:
    chosen = submitted_settings(Spark(gpus=2, settings={"spark.executor.cores": "12"}))
    assert "spark.master" not in chosen and chosen["spark.task.cpus"] == "12"
    assert chosen["spark.task.resource.gpu.amount"] == "1"
    with pytest.raises(SessionError, match=r"^spark.gpus is 2: "):
        submitted_settings(Spark(gpus=2))


def test_the_gpus_of_a_machine_are_told_to_spark_as_nvidia_smi_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(jobs.session.__file__).with_name("find_gpus.sh")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = json.loads(subprocess.run([script], capture_output=True, check=True).stdout)
    assert found == {"name": "gpu", "addresses": ["0", "1"]}
    program.write_text("#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    assert subprocess.run([script], capture_output=True).returncode == 9


@pytest.mark.spark
def test_the_session_writes_merges_and_reads_delta(spark: SparkSession, tmp_path: Path) -> None:
    table = f"delta.`{tmp_path}/numbers`"
    spark.range(5).write.format("delta").save(f"{tmp_path}/numbers")
    spark.sql(f"MERGE INTO {table} t USING (SELECT 3L AS id) s ON t.id = s.id WHEN MATCHED THEN DELETE")
    assert sorted(row.id for row in spark.sql(f"SELECT id FROM {table}").collect()) == [0, 1, 2, 4]


@pytest.mark.spark
def test_the_session_has_its_memory_its_batches_and_its_clock(spark: SparkSession) -> None:
    assert spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch") == "4m"
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    assert jvm.java.lang.Runtime.getRuntime().maxMemory() <= 1 << 30


@pytest.mark.spark
def test_a_worker_uses_this_python_and_one_thread_for_each_core_of_its_task(spark: SparkSession) -> None:
    import sys

    def look(_: object) -> tuple[str, str | None]:
        import os
        import sys

        return sys.executable, os.environ.get("OMP_NUM_THREADS")

    assert spark.sparkContext.parallelize([0], 1).map(look).collect() == [(sys.executable, "1")]


def test_a_worker_lists_the_zips_on_its_path_once_and_still_imports_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w") as code:
        code.writestr("module_one_of_a_zip.py", "")
        code.writestr("module_two_of_a_zip.py", "")
    monkeypatch.syspath_prepend(str(path))
    importlib.import_module("module_one_of_a_zip")
    listed = []
    read = zipimport._read_directory  # type: ignore[attr-defined]
    monkeypatch.setattr(zipimport, "_read_directory", lambda archive: listed.append(archive) or read(archive))
    importlib.invalidate_caches()
    assert str(path) in listed
    listed.clear()
    keep_zip_listings()
    importlib.invalidate_caches()
    assert not listed
    assert importlib.import_module("module_two_of_a_zip").__file__ == f"{path}/module_two_of_a_zip.py"


SMALL_DIRECT_MEMORY = """
import sys
from jobs.config import Spark
from jobs.session import settings, spark_session
options = settings(Spark())["spark.driver.extraJavaOptions"] + " -XX:MaxDirectMemorySize=32m"
spark = spark_session(Spark(master="local[1]", settings={"spark.driver.extraJavaOptions": options}), "reader")
print(spark.read.parquet(sys.argv[1]).selectExpr("sum(octet_length(content))").first()[0])
"""


@pytest.mark.spark
def test_pictures_are_read_from_a_disk_in_whatever_memory_there_is_for_buffers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pictures = pa.table({"content": pa.array([bytes([n]) * (1 << 20) for n in range(64)], pa.binary())})
    pa.parquet.write_table(pictures, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    command = [sys.executable, "-c", SMALL_DIRECT_MEMORY, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)  # it would never end
    assert done.stdout.split()[-1:] == [str(64 << 20)], done.stderr[-2000:]
