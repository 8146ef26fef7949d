"""Makes a machine ready: Java, JARs (of stores too), weights, sample media. Knows no table and starts no job."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jobs.config import ConfigError, load_config
from jobs.session import (
    DELTA_JARS,
    DELTA_PACKAGE,
    LOCAL_JAVA_OPTIONS,
    SessionError,
    check_java,
    class_archive,
    jar_folder,
)
from jobs.stores import STORES, Store

# Spark ships all of these, mostly newer; without them 13 MB are fetched instead of 174 MB.
SHIPPED_WITH_SPARK = (
    "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime",
    "io.unitycatalog:unitycatalog-client",
    "io.unitycatalog:unitycatalog-hadoop",
    "com.fasterxml.jackson.core:*",
    "com.fasterxml.jackson.datatype:*",
    "org.apache.logging.log4j:*",
    "org.slf4j:*",
    "org.apache.parquet:*",
    "org.roaringbitmap:*",
    "org.locationtech.jts:*",
    "com.github.luben:*",
    "com.google.code.findbugs:*",
    "commons-logging:*",
    "commons-pool:*",
    "io.airlift:*",
    "javax.annotation:*",
    "org.xerial.snappy:*",
    "org.antlr:*",
    "commons-codec:*",
    "org.apache.httpcomponents:*",
    "io.netty:*",
    # The whole AWS SDK, 600 MB; hadoop-aws works with the parts that it uses.
    "software.amazon.awssdk:bundle",
    "org.apache.hadoop.thirdparty:*",
)
RESOLVE_TIMEOUT_S = 600
ARCHIVE_TIMEOUT_S = 300
EMPTY_LAKE = """
import sys
from jobs.config import Spark
from jobs.lake import open_lake, read
from jobs.session import spark_session
from schemas import TABLES
settings = {"spark.driver.extraJavaOptions": sys.argv[1]}
spark = spark_session(Spark(master="local[2]", driver_memory="1g", settings=settings), "setup")
lake = open_lake(spark, sys.argv[2])
print([read(spark, lake, table).count() for table in TABLES])
"""


class SetupError(RuntimeError):
    """Something could not be fetched; the message says what, why, and what to try."""


def java() -> str:
    """Check Java; raises SessionError."""
    return f"Java {check_java()}"


def delta_jars(folder: Path | None = None, *, package: str = DELTA_PACKAGE) -> str:
    """Put Delta's JARs into `folder` (`jar_folder()`) unless they are there, checked by digest; raises SetupError."""
    folder = folder or jar_folder()
    if _fetch(folder, [package], DELTA_JARS, prefix="io.delta_"):
        return f"{len(DELTA_JARS)} Delta JARs fetched into {folder}"
    return f"Delta JARs in {folder}"


def store_jars(store: Store) -> str:
    """Put the JARs of an object store into the cache unless they are there, checked by digest; raises SetupError."""
    folder, jars = jar_folder(store.jar_folder_name), store.jars()
    fetched = _fetch(folder, store.packages, jars)
    return f"{len(jars)} JARs {'fetched into' if fetched else 'in'} {folder}"


def _fetch(folder: Path, packages: Sequence[str], jars: Mapping[str, str], *, prefix: str = "") -> bool:
    """Put JARs, file name to SHA-256, into `folder`; False where they are there. prefix: what Ivy puts before names."""
    if all((folder / name).is_file() for name in jars):
        return False
    package = ",".join(packages)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".resolving-") as scratch:
        resolved = {path.name.removeprefix(prefix): path for path in _resolve(package, Path(scratch))}
        ready = Path(scratch) / "ready"
        ready.mkdir()
        for name, sha256 in jars.items():
            if name not in resolved:
                raise SetupError(f"{package} came without {name}; it brought {', '.join(sorted(resolved))}")
            found = hashlib.sha256(resolved[name].read_bytes()).hexdigest()
            if found != sha256:
                raise SetupError(f"{name} has SHA-256 {found}, expected {sha256}: the repository serves another file")
            shutil.copyfile(resolved[name], ready / name)
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
        ready.rename(folder)
    return True


def _resolve(package: str, scratch: Path) -> list[Path]:
    """Let spark-submit resolve `package` into `scratch`, with an empty program: no Spark context is started."""
    import pyspark

    program = scratch / "nothing.py"
    program.touch()
    ivy = scratch / "ivy"
    home = Path(pyspark.__file__).parent
    command = [str(home / "bin" / "spark-submit"), "--master", "local[1]", "--packages", package]
    command += ["--exclude-packages", ",".join(SHIPPED_WITH_SPARK), "--conf", f"spark.jars.ivy={ivy}", str(program)]
    settings = os.environ.get("IVY_SETTINGS")  # an Ivy settings file that names your own repository
    if settings:
        command[1:1] = ["--conf", f"spark.jars.ivySettings={settings}"]
    environment = {
        **os.environ, "SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"
    }  # fmt: skip
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RESOLVE_TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        raise SetupError(f"{package} was not resolved within {RESOLVE_TIMEOUT_S} s; {_repository_hint()}") from e
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines()]
        why = next(
            (line for line in lines if "unresolved dependency" in line or "Exception" in line), "no reason given"
        )
        raise SetupError(f"{package} could not be resolved ({why}); {_repository_hint()}")
    return sorted((ivy / "jars").glob("*.jar"))


def _repository_hint() -> str:
    return (
        "the Maven repository must be reachable once, here; for another one set IVY_SETTINGS to an Ivy settings file, "
        f"or copy the JARs into {jar_folder()}"
    )


def weights() -> str:
    """Fetch and convert the weights of the configured featurizers and of the linker, and embed the catalogue's names.

    Raises WeightsError, UnknownFeaturizer and CatalogueError.
    """
    from featurizers.linking import LINKER_SPEC, prepare_vectors
    from featurizers.spec import find_spec, prepared
    from featurizers.weights import cache_dir, resolve

    specs = [find_spec(featurizer_id) for featurizer_id in load_config().featurize.featurizers]
    for spec in specs:
        prepared(*resolve(spec))
    linker, paths = resolve(LINKER_SPEC)
    prepare_vectors(paths)
    return f"weights of {', '.join(spec.id for spec in [*specs, linker])} in {cache_dir()}"


def sample() -> str:
    """Build the sample media; raises SampleError and WeightsError."""
    from jobs.sample_media import build, sample_folder

    folder = build(sample_folder())
    return f"sample media in {folder}"


def classes() -> str:
    """Make the archive of Spark's classes unless it is there, of those that a session and the tables of a lake need.

    Nothing depends on it, so where it cannot be made that is said, and no error. Raises SessionError without Java.
    """
    archive = class_archive()
    if archive.is_file():
        return f"Spark's classes in {archive}"
    try:
        for other in archive.parent.glob("spark-*.jsa"):  # of a Java or Spark that is no more
            other.unlink()
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".classes-") as scratch:
            made = Path(scratch) / "classes.jsa"
            options = shlex.join([*LOCAL_JAVA_OPTIONS, f"-XX:ArchiveClassesAtExit={made}", "-Xlog:cds*=off"])
            command = [sys.executable, "-c", EMPTY_LAKE, options, f"{scratch}/lake"]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=ARCHIVE_TIMEOUT_S
            )  # to the JVM's end
            if not made.is_file():
                raise OSError(" ".join(done.stderr.split())[-200:] or f"Java wrote none, exit code {done.returncode}")
            made.rename(archive)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"no archive of Spark's classes, so commands start some seconds later: {e}"
    return f"Spark's classes archived in {archive}"


def main(arguments: list[str]) -> int:
    """Run every step; one line each. Exit code 1 for what is worth another try, 2 for what is not.

    `--stores s3,azure` fetches the JARs of these stores and does nothing else.
    """
    at = arguments.index("--stores") if "--stores" in arguments else len(arguments)
    named = [name for name in ",".join(arguments[at + 1 : at + 2]).split(",") if name]
    unknown = [argument for argument in [*arguments[:at], *arguments[at + 2 :]] if argument != "--debug"]
    if unknown:
        print(f"setup: {unknown[0]!r} is not an option; allowed: --debug, --stores NAMES", file=sys.stderr)
        return 2
    strange = [name for name in named if name not in STORES]
    if strange or (at < len(arguments) and not named):
        said = f"{strange[0]!r} is not a store" if strange else "--stores names none"
        print(f"setup: {said}; allowed, with commas between them: {', '.join(STORES)}", file=sys.stderr)
        return 2
    steps: list[tuple[str, Callable[[], str]]] = [
        ("java", java), ("jars", delta_jars), ("weights", weights), ("sample", sample), ("classes", classes)
    ]  # fmt: skip
    if named:
        steps = [(name, partial(store_jars, STORES[name])) for name in named]
    for name, step in steps:
        started = time.monotonic()
        try:
            done = step()
        except KeyboardInterrupt:
            print(f"{name}: interrupted; run it again to go on", file=sys.stderr)
            return 1
        except Exception as e:
            if "--debug" in arguments:
                traceback.print_exc()
            print(f"{name}: {' '.join(str(e).split()) or type(e).__name__}", file=sys.stderr)
            return 2 if isinstance(e, (SessionError, ConfigError, ValueError)) else 1
        print(f"{name}: {done} ({time.monotonic() - started:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
