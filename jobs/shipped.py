"""Weights on a cluster: the driver puts them into the lake, tasks have them from there. Knows files, no model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.weights import WeightsUnreachable, cache_dir, check_unchanged, fetch
from jobs.lake import Lake
from jobs.meter import own_cores
from jobs.packs import rename
from jobs.stores import open_store
from jobs.work import Due, Work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

COMPLETE = "_SUCCESS"  # stands beside weights that are there as a whole


def for_tasks(spark: SparkSession, lake: Lake, work: Work) -> Work:
    """`work` with its weights in the lake, unless its tasks run on this machine alone; raises WeightsUnreachable."""
    if own_cores(str(spark.sparkContext.master)) is not None:
        return work
    linker = ship(work.linker, lake.weights()) if work.linker is not None else None
    return replace(work, due=[ship(one, lake.weights()) for one in work.due], linker=linker)


def ship(due: Due, root: str) -> Due:
    """`due` with its weights under `root`/<sha256>/ too, where `at_hand` looks for them; what is there is left.

    root: URI of a folder that every machine of the cluster reads. Raises WeightsUnreachable.
    """
    shipped = {}
    for name, path in due.paths.items():
        uri = f"{root}/{due.sha256[name]}"
        try:
            store, folder = open_store(uri)
            if not store.exists(f"{folder}/{COMPLETE}"):
                for file in [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]:
                    _put(store, file, folder, str(file.relative_to(path.parent)))
                store.touch(f"{folder}/{COMPLETE}")
        except Exception as e:  # every store has its own, and so has a package that is missing
            raise WeightsUnreachable(f"{due.spec.id}: {path} cannot be put to {uri}: {type(e).__name__}: {e}") from e
        shipped[name] = f"{uri}/{path.name}"
    return replace(due, shipped=shipped)


def _put(store: Any, file: Path, folder: str, name: str) -> None:
    """Put a file so that it is there as a whole or not at all, whatever another driver puts or is killed at."""
    target, partial = f"{folder}/{name}", f"{folder}.{uuid.uuid4().hex}"  # outside of the folder that is read
    store.makedirs(target.rpartition("/")[0], exist_ok=True)
    try:
        store.put_file(str(file), partial)
        rename(store, partial, target, file.stat().st_size)
    finally:
        with suppress(Exception):
            store.rm(partial)


def at_hand(due: Due) -> Mapping[str, Path]:
    """Name -> local path of the weights, in a task: fetched once per machine if they were shipped.

    Raises WeightsError where they are not what they were when the run began, WeightsUnreachable.
    """
    paths = {name: _fetched(uri, due.sha256[name]) for name, uri in due.shipped.items()} or due.paths
    for name, sha256 in due.sha256.items():
        check_unchanged(paths[name], sha256)
    return paths


def _fetched(uri: str, sha256: str) -> Path:
    scheme, _, address = uri.partition("://")
    if scheme == "file":  # on a file system that all machines share
        return Path(address)
    kept = cache_dir() / "weights" / sha256 / address.rpartition("/")[2]
    return kept if kept.exists() else fetch(uri, sha256, resolvers={scheme: _from_store})


def _from_store(uri: str, folder: Path) -> Path:
    target = folder / uri.rpartition("/")[2]
    try:
        store, path = open_store(uri)
        store.get(path, str(target), recursive=store.isdir(path))
    except Exception as e:
        raise WeightsUnreachable(f"{uri}: {type(e).__name__}: {e}") from e
    return target
