"""Object stores a lake stands on: their JARs, what Spark is told, how Python opens them. Knows no table and no job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HADOOP = "3.4.2"  # as pyspark ships it
AWS_SDK = "2.29.52"  # of the versions that Hadoop takes the one it was built with; without its bundle of 600 MB
RETRY_ATTEMPTS = "6"  # of Python's client for one request, waiting 1, 2, 4, ... s at most, unless AWS_MAX_ATTEMPTS says


class StoreRefused(ValueError):
    """The store or its address cannot be used as it is; the message says what it said and what to do."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A kind of object store: what `make setup STORES=name` fetches for it."""

    name: str
    schemes: tuple[str, ...]
    packages: tuple[str, ...]  # Maven coordinates; conf/stores/<name>.jars holds the digests of what they bring
    client: str  # the Python package by which fsspec opens it

    @property
    def jar_folder_name(self) -> str:
        """The folder of its JARs below the cache's `jars`."""
        return self.packages[0].replace(":", "_")

    def jars(self) -> dict[str, str]:
        """Its JARs and their SHA-256, beyond those that pyspark ships."""
        from jobs.config import built_in  # what opens a store on a worker needs no configuration

        text = built_in(f"stores/{self.name}.jars")
        return {name: sha256 for sha256, name in (line.split() for line in text.splitlines())}


S3 = Store(
    name="s3",
    schemes=("s3a",),
    packages=(
        f"org.apache.hadoop:hadoop-aws:{HADOOP}",
        f"software.amazon.awssdk:s3:{AWS_SDK}",
        f"software.amazon.awssdk:sts:{AWS_SDK}",
        f"software.amazon.awssdk:s3-transfer-manager:{AWS_SDK}",
        "software.amazon.s3.analyticsaccelerator:analyticsaccelerator-s3:1.2.1",
        "org.wildfly.openssl:wildfly-openssl:2.1.4.Final",
    ),
    client="s3fs",
)
AZURE = Store(
    name="azure",
    schemes=("abfss", "abfs", "wasb", "wasbs"),
    packages=(f"org.apache.hadoop:hadoop-azure:{HADOOP}",),
    client="adlfs",
)
STORES = {store.name: store for store in (S3, AZURE)}


def store_of(uri: str) -> Store | None:
    """The store that a URI is in; None for local paths, and for what Spark opens without further JARs."""
    scheme = uri.partition("://")[0]
    return next((store for store in STORES.values() if scheme in store.schemes), None)


def spark_settings(uri: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What Spark is told of a lake's store, so that what Python's client takes from the environment serves both."""
    if store_of(uri) is not S3:
        return {}
    chosen = {}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint:
        chosen["spark.hadoop.fs.s3a.endpoint"] = endpoint
        chosen["spark.hadoop.fs.s3a.path.style.access"] = "true"  # as botocore does where an endpoint is given
    region = _region(environment)
    if region:
        chosen["spark.hadoop.fs.s3a.endpoint.region"] = region
    return chosen


def _region(environment: Mapping[str, str]) -> str | None:
    """Java's client knows the first of these names, Python's the second."""
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")


def client_options(uri: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What fsspec is told of a URI's store: retries and region; its client finds credentials and endpoint by itself."""
    if store_of(uri) is not S3:
        return {}
    attempts, mode = environment.get("AWS_MAX_ATTEMPTS", RETRY_ATTEMPTS), environment.get("AWS_RETRY_MODE", "standard")
    region = _region(environment)
    return {
        "config_kwargs": {"retries": {"mode": mode, "max_attempts": int(attempts)}},
        "client_kwargs": {"region_name": region} if region else {},
        "use_listings_cache": False,  # other drivers and tasks write too
    }


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path in it; raises StoreRefused where its package is not installed."""
    import fsspec.core

    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **client_options(uri))
    except ImportError as e:
        store = store_of(uri)
        what = f"pip install 'lakelens[{store.name}]' or make setup STORES={store.name} brings it" if store else str(e)
        raise StoreRefused(f"{uri} needs the Python package {store.client if store else e.name}: {what}") from e
    return filesystem, path


def refusal(uri: str, error: BaseException) -> StoreRefused | None:
    """What S3 refused and no repetition mends, in one line; None for any other error."""
    cause = error.__cause__ or error
    if type(cause).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return StoreRefused(f"{uri}: {cause}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role or profile")
    said = getattr(cause, "response", {}).get("Error", {})
    if said.get("Code") == "NoSuchBucket":
        return StoreRefused(f"{uri}: the bucket {uri.split('/')[2]} does not exist at {_where()}")
    if isinstance(error, PermissionError):
        return StoreRefused(f"{uri}: access was refused by {_where()}: {said.get('Code')}: {error}")
    return None


def _where() -> str:
    environment = os.environ
    return environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or "Amazon S3"
