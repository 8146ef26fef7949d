"""Starts Spark: Java, JARs, memory and the settings that every job relies on. Knows no table and no job."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipimport
from pathlib import Path
from typing import TYPE_CHECKING

from featurizers.weights import cache_dir
from jobs.config import Spark
from jobs.stores import spark_settings, store_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OLDEST_JAVA = 17  # Spark 4 runs on nothing older

DELTA_PACKAGE = "io.delta:delta-spark_4.1_2.13:4.4.0"
DELTA_JARS = {  # name -> SHA-256: what DELTA_PACKAGE needs beyond the JARs that pyspark ships
    "delta-spark_4.1_2.13-4.4.0.jar": "75a9400986853c061f5109f012547de2545a5759e5e752e5ef633dabe16a4f10",
    "delta-storage-4.4.0.jar": "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc",
    "delta-kernel-api-4.4.0.jar": "ee9b5a14ac3b7efdff4d61a58478fe8eb0e5a3fbca43889dca7290795fe79a11",
    "delta-kernel-defaults-4.4.0.jar": "225c975199e4718b38ee5b7e6da7f19e9585024262b2cec2656b32151a856b0b",
    "delta-kernel-unitycatalog-4.4.0.jar": "cea22dfb4ac562b3cd27bf652697750e8336009d73fb06631363aaaad5345ffa",
}

EVERYWHERE = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    # Runs pin versions, that of a table that seldom changes months old: what is kept is for `maintain` to decide.
    "spark.databricks.delta.vacuum.enforceTimeTravelWithinDeletedFileRetentionDuration": "false",
    # Measured with rows of 106 KB: 4 MB batches pass 2.3 times as many images a second as the default 64 MB.
    "spark.sql.execution.arrow.maxBytesPerBatch": "4m",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    # The default of 4,096 rows in memory at once is 12 GB of 3 MB pictures; smaller costs nothing measurable.
    "spark.sql.parquet.columnarReaderBatchSize": "32",
    # Hadoop's vectored reads of local files take a direct buffer of a whole column chunk, 134 MB of pictures, for each
    # thread and keep it; where there is no memory for one, the read never ends: a crawl of 60,000 pictures hung.
    "spark.hadoop.parquet.hadoop.vectored.io.enabled": "false",
    # A Python worker that crashes in native code says where.
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.python.worker.reuse": "true",  # a loaded model outlives its task
    "spark.ui.showConsoleProgress": "false",
    # Spark sets OMP_NUM_THREADS of a Python worker to spark.task.cpus by itself.
    "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
}

# On a laptop the work is in Python: a JVM that compiles lightly and collects with one thread leaves it the cores.
# Measured to the first session on two busy cores: 11.5 CPU seconds, 20.6 with the JVM's own choice.
# Compiling lightly, the JVM reserves 48 MB for code, which the demo's plans fill: then it stops compiling, or dies.
LOCAL_JAVA_OPTIONS = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:ReservedCodeCacheSize=192m"]


# Measured in the demo, anonymous memory at the highest: a Python worker with the three default featurizers 1.4 GB, the
# JVM with 1 GB of heap 1.3 GB, the driver's Python .3 GB.
WORKER_BYTES = 1400 << 20
DRIVER_BYTES = 1700 << 20
EXECUTOR_MIB = 1024  # heap of one GPU's executor: Arrow batches pass through it, pictures and models are in Python


class SessionError(RuntimeError):
    """Spark cannot be started; the message says what is missing and what to do."""


def java_command() -> str:
    """The Java that Spark would use; raises SessionError where there is none."""
    home = os.environ.get("JAVA_HOME")
    command = f"{home}/bin/java" if home else shutil.which("java")
    if command is None:
        raise SessionError(f"Java is not installed; install Java {OLDEST_JAVA} or newer, or set JAVA_HOME")
    return command


@functools.cache
def said_by_java(command: str) -> str:
    """What `java -version` says; raises SessionError where it cannot be run."""
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SessionError(
            f"Java cannot be run: {e}; install Java {OLDEST_JAVA} or newer and set JAVA_HOME to its folder"
        ) from e
    return answer.stderr + answer.stdout


def java_version(java: str | None = None) -> int:
    """Major version of `java`, or of the Java that Spark would use; raises SessionError where it tells none."""
    command = java or java_command()
    said = said_by_java(command)
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None:
        raise SessionError(f"{command} -version does not name a version: {said[:200]!r}")
    return int(found[1])


def check_java(java: str | None = None) -> int:
    """`java_version`, refused with SessionError where it is too old for Spark."""
    version = java_version(java)
    if version < OLDEST_JAVA:
        raise SessionError(
            f"Java {version} is too old: Spark needs Java {OLDEST_JAVA} or newer; install it or set JAVA_HOME"
        )
    return version


def class_archive() -> Path:
    """Where `make setup` puts Spark's classes as the JVM has them in memory, so that it looks for them in no JAR.

    Beside the packages, whose files and times it names: of another Java or Spark it is another. Raises SessionError.
    """
    import pyspark

    [core] = Path(pyspark.__file__).parent.glob("jars/spark-core_*.jar")
    made_of = [said_by_java(java_command()), str(core), str(core.stat().st_mtime_ns), *LOCAL_JAVA_OPTIONS]
    return Path(sys.prefix) / f"spark-{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:16]}.jsa"


def local_java_options() -> list[str]:
    """LOCAL_JAVA_OPTIONS, and the archive of Spark's classes where there is one. Raises SessionError.

    Measured to the first lake on two cores: 7.9 CPU seconds of the JVM, 11.8 without. An archive that does not fit, of
    other JARs for one, is not used and not worth a word.
    """
    archive = class_archive()
    used = [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds*=off"] if archive.is_file() else []
    return [*LOCAL_JAVA_OPTIONS, *used]


def jar_folder(name: str = DELTA_PACKAGE.replace(":", "_")) -> Path:
    """Where `make setup` puts JARs, by default Delta's, once for all checkouts of this user."""
    return cache_dir() / "jars" / name


def jars(lake: str = "") -> list[Path]:
    """The JARs on this machine of Delta and of the lake's store; raises SessionError if one is missing."""
    paths = [jar_folder() / name for name in DELTA_JARS]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SessionError(f"Delta Lake's JARs {', '.join(missing)} are not in {jar_folder()}; run `make setup`")
    store = store_of(lake)
    if store is None:
        return paths
    folder = jar_folder(store.jar_folder_name)
    of_store = [folder / name for name in store.jars()]
    missing = [path.name for path in of_store if not path.is_file()]
    if missing:
        raise SessionError(
            f"a lake at {lake} needs {len(missing)} JARs, {missing[0]} for one, that are not in {folder}; run "
            f"`make setup STORES={store.name}`"
        )
    return paths + of_store


def local_cores(master: str) -> int | None:
    """Cores of a local master (`local`, `local[4]`, `local[*]`, `local[4,2]`); None for any other master."""
    found = re.fullmatch(r"local(?:\[(\d+|\*)(?:,\d+)?\])?", master)
    if found is None:
        return None
    return os.cpu_count() or 1 if found[1] == "*" else int(found[1] or 1)


def memory_bytes(root: Path = Path("/")) -> int:
    """What this process may use: the machine's memory, or less where a control group limits it (version 1 or 2).

    root: of the file system that holds `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if "memory" in controllers.split(","):
            limits.append(_number(_read(root / f"sys/fs/cgroup/memory{group}/memory.limit_in_bytes")))
        elif not controllers:
            limits.append(_number(_read(root / f"sys/fs/cgroup{group}/memory.max")))
    return min(limit for limit in limits if limit)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # no control groups, or none of that kind
        return ""


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def cpus_per_task(cores: int, memory: int) -> int:
    """Cores of one task, so that the Python workers of all tasks fit into `memory` bytes beside the driver.

    A worker with more cores decodes and infers with as many threads; a worker for each core is faster where it fits.
    """
    n_workers = max(1, min(cores, (memory - DRIVER_BYTES) // WORKER_BYTES))
    return -(-cores // n_workers)


def settings(config: Spark, lake: str = "") -> dict[str, str]:
    """The Spark settings of a session for a lake that this process starts; those of the configuration win."""
    chosen = EVERYWHERE | spark_settings(lake)
    chosen["spark.master"] = config.master
    chosen["spark.driver.memory"] = config.driver_memory
    chosen["spark.jars"] = ",".join(str(path) for path in jars(lake))
    cores = local_cores(config.master)
    options = [] if cores is None else local_java_options()
    logging = Path(__file__).with_name("log4j2.json.properties" if config.log == "json" else "log4j2.properties")
    if logging.is_file():  # not where the code is inside a zip
        options = [*options, f"-Dlog4j2.configurationFile={logging.as_uri()}"]
    chosen["spark.driver.extraJavaOptions"] = shlex.join(options)
    chosen |= log_settings(config)
    if cores is not None:
        chosen["spark.task.cpus"] = str(cpus_per_task(cores, memory_bytes()))
        # The defaults are for clusters: 200 shuffle partitions, 50 tasks to read the state of a Delta table.
        chosen["spark.sql.shuffle.partitions"] = str(max(2, cores))
        chosen["spark.databricks.delta.snapshotPartitions"] = "2"
        chosen["spark.ui.enabled"] = "false"
        # Spark makes this folder at the first session, where it was started; nothing of ours is kept there.
        chosen["spark.sql.warehouse.dir"] = Path(tempfile.gettempdir(), "lakelens-spark-warehouse").as_uri()
        # Plans of a few small tasks: a wave's commits took 10.7 s with adaptive execution and 8.9 s without.
        chosen["spark.sql.adaptive.enabled"] = "false"
    if config.gpus:
        chosen |= gpu_settings(config, cores)
    return chosen | config.settings


def log_settings(config: Spark) -> dict[str, str]:
    """Spark's own log in lines of JSON, where ours is; executors write it as their log4j2 file says."""
    return {"spark.log.structuredLogging.enabled": "true"} if config.log == "json" else {}


def gpu_settings(config: Spark, cores: int | None) -> dict[str, str]:
    """One executor and one task at a time for each of `config.gpus`; a task has all cores of its executor.

    cores: of a local master. Spark's local mode knows no GPUs, so it becomes a cluster of one worker on this machine,
    its GPUs found by nvidia-smi. None on a cluster, whose administrator says how they are found. Raises SessionError
    where the cores of an executor are not known.
    """
    per_gpu = str(max(1, cores // config.gpus)) if cores is not None else config.settings.get("spark.executor.cores")
    if per_gpu is None:
        raise SessionError(
            f"spark.gpus is {config.gpus}: on a cluster the cores of each GPU's executor are needed too, as "
            "spark.settings: {spark.executor.cores: ...}"
        )
    chosen = {
        "spark.executor.cores": per_gpu,
        "spark.executor.instances": str(config.gpus),
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.cpus": per_gpu,
        "spark.task.resource.gpu.amount": "1",
    }
    if cores is not None:
        chosen |= {
            "spark.master": f"local-cluster[1,{int(per_gpu) * config.gpus},{EXECUTOR_MIB * config.gpus}]",
            "spark.task.maxFailures": "2",  # as `local[*,2]` has it
            "spark.executor.memory": f"{EXECUTOR_MIB}m",
            "spark.executor.extraJavaOptions": " ".join(LOCAL_JAVA_OPTIONS),
            "spark.worker.resource.gpu.amount": str(config.gpus),
            "spark.worker.resource.gpu.discoveryScript": str(Path(__file__).with_name("find_gpus.sh")),
        }
    return chosen


def submitted_settings(config: Spark, lake: str = "") -> dict[str, str]:
    """What is set on top of the settings that `spark-submit` was given, whose master and JARs stand."""
    return (
        EVERYWHERE
        | log_settings(config)
        | spark_settings(lake)
        | (gpu_settings(config, None) if config.gpus else {})
        | config.settings
    )


def keep_zip_listings() -> None:
    """In a Python worker: read the contents of the zips on its path, Spark's own among them, no more.

    Spark invalidates all import caches before every task, for files that were added meanwhile. For a zip Python 3.11
    lists it anew at once, 90 ms for each task; zips do not change while they are on a path.
    """
    for finder in sys.path_importer_cache.values():
        if isinstance(finder, zipimport.zipimporter):
            finder.invalidate_caches = lambda: None  # type: ignore[method-assign]


def session_is_up() -> bool:
    """True where this process has started Spark already."""
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def spark_session(config: Spark, app_name: str, *, lake: str = "") -> SparkSession:
    """The Spark session of this process, started if there is none, with what the lake's store needs.

    Under `spark-submit` the submitter's master, memory and JARs stand, and the rest is set on top.
    Raises SessionError where Java or the JARs are missing, or Spark does not start.
    """
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    if "PYSPARK_GATEWAY_PORT" in os.environ:
        chosen = submitted_settings(config, lake)
    else:
        check_java()
        chosen = settings(config, lake)
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        if local_cores(config.master) is not None:
            os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
            os.environ.setdefault("SPARK_LAUNCHER_OPTS", " ".join(LOCAL_JAVA_OPTIONS))
    builder: SparkSession.Builder = SparkSession.builder.appName(app_name)
    for key, value in chosen.items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except PySparkRuntimeError as e:
        raise SessionError(f"Spark did not start with master {config.master}: {e}; the lines above say why") from e
