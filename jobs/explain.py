"""`lakelens explain`: every step of one document, in the terminal, as facts and as a page. Changes no table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.spec import KINDS
from jobs.command import FINISHED, Common, Ending
from jobs.explain_page import Facts, next_commands, render, steps, write_page
from jobs.gates import PAGES
from jobs.lake import Lake, lake_at, open_lake, read, rows_of
from jobs.published import Champion, kind_of, promotions
from jobs.runs import run_rows, shows_life
from jobs.session import spark_session
from jobs.tables import console, grid
from jobs.urls import InvalidUrl, canonical_url, doc_id
from schemas import DOCUMENTS, FEATURES, FETCHES, FRAMES, GOLDEN, MEDIA, MENTIONS
from schemas.errors import RETRYABLE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class UnknownDocument(ValueError):
    """What was asked for is not in the lake."""


# -- what is asked for --------------------------------------------------------------------------------------------


def named(text: str) -> tuple[str, str]:
    """The column and id that a doc_id, a media_id, a URL or an absolute path names; raises UnknownDocument."""
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return "doc_id", text
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return "media_id", text
    if text.startswith("/"):
        return "doc_id", doc_id(Path(text).as_uri())
    if text.startswith("file:"):
        return "doc_id", doc_id(text)
    try:
        return "doc_id", doc_id(canonical_url(text).href)
    except InvalidUrl as e:
        raise UnknownDocument(
            f"{text!r} names no document: a doc_id has 32 hex digits, a media_id 64, else it is a URL ({e})"
        ) from e


# -- what became of it --------------------------------------------------------------------------------------------


def publication(run_id: str, runs: Sequence[Facts], *, now: datetime, expiry_s: float) -> tuple[bool, str]:
    """Whether readers see what a run wrote, and why or why not, from the rows of `runs`."""
    judging = sorted((row for row in runs if run_id in (row["covers"] or [])), key=lambda row: row["started"])
    if accepted := [row for row in judging if row["status"] == "accepted"]:
        return True, f"accepted by {accepted[0]['run_id']}"
    own = next((row for row in runs if row["run_id"] == run_id), None)
    if own is None:
        return False, f"run {run_id} is not in runs"
    if own["status"] == "running":
        lives = shows_life(own, now=now, expiry_s=expiry_s)
        return False, "its run goes on" if lives else "its run died, and no check has judged it"
    if rejected := [row for row in judging if row["status"] == "rejected"]:
        return False, f"rejected by {rejected[-1]['run_id']}"
    failed = "its run failed, and " if own["status"] == "failed" else ""
    return False, f"{failed}no check has judged it"


def outcomes(
    features: Sequence[Facts], runs: Sequence[Facts], *, now: datetime, expiry_s: float
) -> list[dict[str, Any]]:
    """What became of the media in each vector space: errors or what was found, times, and whether it is published.

    features: rows of `features` without vectors. A featurizer that a run of this lake has used and that has no row
    here is told as such, by its last fingerprint.
    """
    by_space: dict[tuple[str, str], list[Facts]] = {}
    for row in features:
        by_space.setdefault((row["featurizer"], row["fingerprint"]), []).append(row)
    standing = promotions(runs)
    found = []
    for (featurizer, fingerprint), rows in sorted(by_space.items()):
        run_ids = sorted({row["run_id"] for row in rows})
        seen = [publication(run_id, runs, now=now, expiry_s=expiry_s) for run_id in run_ids]
        errors = [{"frame": row["frame"], **row["error"]} for row in rows if row["error"] is not None]
        found.append(
            {
                "featurizer": featurizer,
                "fingerprint": fingerprint,
                "runs": run_ids,
                "published": all(published for published, _ in seen),
                "why": "; ".join(dict.fromkeys(why for _, why in seen)),
                "champion": _is_champion(standing, featurizer, fingerprint),
                "frames": len(rows),
                "errors": [error | {"retryable": error["code"] in RETRYABLE} for error in errors],
                "decode_ms": _total(rows, "decode_ms"),
                "infer_ms": _total(rows, "infer_ms"),
                "found": [{"frame": row["frame"], **one} for row in rows for one in row["features"] or ()],
            }
        )
    used: dict[str, tuple[str, str]] = {}
    for run in sorted(runs, key=lambda run: run["started"]):
        if run["job"] == "featurize":
            used |= {name: (fingerprint, run["run_id"]) for name, fingerprint in (run["outputs"] or {}).items()}
    for name, (fingerprint, run_id) in sorted(used.items()):
        if name.partition("_")[0] in KINDS and (name, fingerprint) not in by_space:
            missing = {"featurizer": name, "fingerprint": fingerprint, "runs": [], "published": False, "frames": 0}
            missing |= {"why": f"no row yet; {run_id} was the last to write it", "champion": False, "errors": []}
            found.append(missing | {"decode_ms": None, "infer_ms": None, "found": []})
    return found


def _is_champion(standing: Mapping[str, Sequence[Champion]], featurizer: str, fingerprint: str) -> bool:
    line = standing.get(kind_of(featurizer), ())
    return len(line) > 0 and (line[-1].featurizer, line[-1].fingerprint) == (featurizer, fingerprint)


def _total(rows: Sequence[Facts], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return float(sum(known)) if known else None


def collect(spark: SparkSession, lake: Lake, text: str, *, expiry_s: float) -> dict[str, Any]:
    """All that the lake holds of a document; raises UnknownDocument. Thumbnails are bytes, times have their zone."""
    from pyspark.sql import functions as F

    column, wanted = named(text)
    same = read(spark, lake, DOCUMENTS).where(F.col(column) == wanted).orderBy("doc_id").limit(100).collect()
    document = same[0].asDict(recursive=True) if same else None
    media_id = document["media_id"] if document else wanted
    of_media = F.col("media_id") == media_id
    media = read(spark, lake, MEDIA).where(of_media).drop("content").first() if media_id else None
    if document is None and (column == "doc_id" or media is None):
        raise UnknownDocument(f"{text} is not in {lake.uri}: no document has {column} {wanted}")

    def rows(found: DataFrame, *order: str) -> list[dict[str, Any]]:
        if "features" in found.columns:
            bare = "transform(features, f -> struct(f.label, f.score, f.box, f.text, size(f.vector) AS dim))"
            found = found.withColumn("features", F.expr(bare))
        return [_zoned(row.asDict(recursive=True)) for row in found.orderBy(*order).collect()]

    this_media = spark.createDataFrame([(media_id,)], "media_id STRING")
    of_document = F.col("doc_id") == (document["doc_id"] if document else "")
    features = rows(rows_of(spark, lake, FEATURES, this_media), "featurizer", "frame") if media else []
    mentions = rows(read(spark, lake, MENTIONS).where(of_document), "source")
    fetches = rows(read(spark, lake, FETCHES).where(of_document), "started_at", "attempt")
    history, now = run_rows(spark, lake), datetime.now(UTC)
    wrote = {row["run_id"] for row in (*fetches, *features, *mentions)}
    touched = [row for row in history if row["run_id"] in wrote or wrote & set(row["covers"] or ())]
    relevant = F.exists("relevant", lambda one: one["media_id"] == media_id)
    golden = read(spark, lake, GOLDEN).where(of_media | relevant) if media_id else read(spark, lake, GOLDEN).limit(0)
    known = _pages_around(spark, lake, document) if document else {}
    others = [row.doc_id for row in same[1:]]
    if column == "doc_id" and media_id:
        there = read(spark, lake, DOCUMENTS).where(of_media & ~of_document).select("doc_id").limit(100).collect()
        others = [row.doc_id for row in there]
    return {
        "lake": lake.uri,
        "document": _zoned(document) if document else None,
        "found_on": known.get("found_on"),
        "shows": known.get("shows", []),
        "same_media": sorted(others),
        "fetches": fetches,
        "media": _zoned(media.asDict(recursive=True)) if media else None,
        "frames": rows(rows_of(spark, lake, FRAMES, this_media), "frame") if media else [],
        "outcomes": outcomes(features, history, now=now, expiry_s=expiry_s) if media else [],
        "mentions": [
            row
            | dict(
                zip(("published", "why"), publication(row["run_id"], history, now=now, expiry_s=expiry_s), strict=True)
            )
            for row in mentions
        ],
        "golden": [
            row.asDict()
            for row in golden.select("golden_set", "golden_version", "item_id", "kind", "labels", "query")
            .orderBy("golden_set", "golden_version", "item_id")
            .collect()
        ],
        "runs": sorted(touched, key=lambda row: (row["started"], row["run_id"])),
    }


def _pages_around(spark: SparkSession, lake: Lake, document: Facts) -> dict[str, Any]:
    """The crawled page that a document was found on, and at most 100 of the documents that a page shows."""
    from pyspark.sql import functions as F

    documents, around = read(spark, lake, DOCUMENTS), dict[str, Any]()
    columns = ("doc_id", "url", "source", "media_type", "depth", "error")
    if document["media_type"] in PAGES:
        names = [document["url"], *filter(None, [document["final_url"]])]
        shown = documents.where(F.col("page_url").isin(names)).select(*columns).orderBy("url").limit(100).collect()
        around["shows"] = [row.asDict(recursive=True) for row in shown]
    if document["page_url"] is not None:
        is_it = (F.col("doc_id") == doc_id(document["page_url"])) | (F.col("final_url") == document["page_url"])
        page = documents.where(is_it & F.col("media_type").isin(*PAGES)).select(*columns).first()
        around |= {"found_on": page.asDict(recursive=True)} if page is not None else {}
    return around


def _zoned(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose times, which Spark gives in the session's zone without saying so, have their zone."""
    return {
        name: value.astimezone(UTC)
        if isinstance(value, datetime)
        else bytes(value)
        if isinstance(value, bytearray)
        else value
        for name, value in row.items()
    }


def plain(value: Any) -> Any:
    """Facts as JSON takes them: times as ISO 8601, without thumbnails."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items() if not isinstance(one, bytes)}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def show_explanation(common: Common, text: str) -> Ending:
    """Print every step of a document and write its page; with --json the facts are in the outcome instead."""
    named(text)
    lake_at(common.config.lake)
    spark = spark_session(common.config.spark, "lakelens explain", lake=common.config.lake)
    lake = open_lake(spark, common.config.lake, create=False)
    facts = collect(spark, lake, text, expiry_s=common.config.featurize.lease_expiry_s)
    document = facts["document"]
    name = document["doc_id"] if document else facts["media"]["media_id"]
    page = write_page(lake, name, render(facts))
    commands = next_commands(facts)
    if not common.as_json:
        out = console()
        for step in steps(facts):
            if step.rows:
                out.print(grid(step.name, step.headings, step.rows, step.numbers), "")
            else:
                out.print(f"[italic]{step.name}[/italic]\n{step.empty}\n")
        if commands:
            out.print("[italic]again[/italic]", *commands, "", sep="\n", highlight=False, soft_wrap=True)
    what = document["url"] if document else f"media {name}"
    ending = {**plain(facts), "page": str(page), "commands": commands}
    return Ending(exit_code=FINISHED, message=f"{what}; page at {page}", facts=ending)
