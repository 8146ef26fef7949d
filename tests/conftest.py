"""Fixtures that need something outside the test: a Spark session, a lake, the labelled photographs. Knows no job."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from jobs.lake import Lake


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--lake URI`: the lake that tests/test_lake.py looks at."""
    parser.addoption("--lake", metavar="URI", help="hold this lake, not a small one made for it, to tests/test_lake.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long or another environment, unless it is asked for by its marker."""
    left_out = [marker for marker in ("faults", "cluster", "stores", "airflow") if marker not in config.option.markexpr]
    deselected = [item for item in items if any(map(item.get_closest_marker, left_out))]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One local Spark session with Delta for the whole test run."""
    from jobs.config import Spark
    from jobs.session import spark_session

    warehouse = tmp_path_factory.mktemp("warehouse")
    config = Spark(master="local[2]", driver_memory="1g", settings={"spark.sql.warehouse.dir": warehouse.as_uri()})
    session = spark_session(config, "tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def small(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A small lake to be read only (`tests.small_lake.copied` gives one to change), made once for all processes."""
    from jobs.lake import open_lake
    from tests import small_lake

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "small.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "small.made").exists():
            small_lake.make(spark, folder / "small")
            (folder / "small.made").touch()
    return open_lake(spark, str(folder / "small"), create=False)


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of labelled photographs that LAKELENS_DEV_DATA names."""
    folder = os.environ.get("LAKELENS_DEV_DATA")
    if not folder:
        pytest.skip("LAKELENS_DEV_DATA does not name a folder of labelled photographs")
    return Path(folder)
