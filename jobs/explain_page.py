"""How an explanation is shown: the steps of a document as tables of texts, and its page. Knows no Spark."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.check import reports_folder
from jobs.gates import PAGES
from jobs.lake import Lake
from jobs.published import kind_of
from jobs.report import Picture, file_name, pages, picture_of
from jobs.runs import code_version
from jobs.tables import readable_bytes
from schemas.errors import RETRYABLE

Facts = Mapping[str, Any]  # of a document, as jobs.explain collects them
SHOWN_FOUND = 40  # of all featurizers and frames; --json has all
SHOWN_PICTURES = 24


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a document as a table of texts."""

    name: str
    headings: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    numbers: Sequence[str] = ()  # right-aligned headings
    empty: str = "nothing"  # what having no rows means


# -- as texts -----------------------------------------------------------------------------------------------------


def steps(facts: Facts) -> list[Step]:
    """The steps of a document in order, as they are shown."""
    media = facts["media"]
    if _is_page(facts):
        return [_described(facts), _shows(facts), _fetches(facts), _runs(facts)]
    spaces = {(one["featurizer"], one["fingerprint"]): one for one in facts["outcomes"]}
    return [
        _described(facts),
        _fetches(facts),
        Step(
            name="media",
            headings=("field", "value"),
            rows=_fields(_stored(media)) if media else [],
            empty="no bytes are held",
        ),
        Step(
            name="frames",
            headings=("frame", "seconds", "shot", "size"),
            rows=[
                {
                    "frame": str(row["frame"]),
                    "seconds": f"{row['time_s']:.3f}",
                    "shot": _text(row["shot"]),
                    "size": f"{row['width']} x {row['height']}",
                }
                for row in facts["frames"]
            ],
            numbers=("seconds",),
            empty="none was decoded",
        ),
        Step(
            name="features",
            headings=("featurizer", "published", "frames", "found", "decode ms", "infer ms", "outcome", "why", "runs"),
            rows=[
                {
                    "featurizer": f"{name}#{fingerprint[:8]}",
                    "published": "yes" if one["published"] else "no",
                    "frames": str(one["frames"]),
                    "found": str(len(one["found"])),
                    "decode ms": _ms(one["decode_ms"]),
                    "infer ms": _ms(one["infer_ms"]),
                    "outcome": _outcome(one),
                    "why": one["why"] + (", and champion" if one["champion"] else ""),
                    "runs": ", ".join(one["runs"]),
                }
                for (name, fingerprint), one in spaces.items()
            ],
            numbers=("frames", "found", "decode ms", "infer ms"),
            empty="no featurizer has looked at it",
        ),
        Step(
            name="found",
            headings=("featurizer", "frame", "label", "score", "text", "box"),
            rows=[
                {
                    "featurizer": f"{name}#{fingerprint[:8]}",
                    "frame": str(found["frame"]),
                    "label": _text(found["label"]),
                    "score": "" if found["score"] is None else f"{found['score']:.2f}",
                    "text": _text(found["text"]),
                    "box": ", ".join(f"{v:.2f}" for v in found["box"] or ()),
                }
                for (name, fingerprint), one in spaces.items()
                for found in one["found"]
            ][:SHOWN_FOUND],
            numbers=("score",),
        ),
        Step(
            name="mentions",
            headings=("source", "published", "names", "outcome", "why", "run"),
            rows=[
                {
                    "source": row["source"],
                    "published": "yes" if row["published"] else "no",
                    "names": ", ".join(
                        f"{one['text'] or ''} ({one['label']})" for one in row["features"] or () if one["label"]
                    ),
                    "outcome": _error(row["error"]) or "looked",
                    "why": row["why"],
                    "run": row["run_id"],
                }
                for row in facts["mentions"]
            ],
            empty="its caption, title and position were not linked",
        ),
        Step(
            name="golden sets",
            headings=("set", "kind", "item", "says"),
            rows=[
                {
                    "set": f"{row['golden_set']}@{row['golden_version']}",
                    "kind": row["kind"],
                    "item": row["item_id"][:12],
                    "says": row["query"] or ", ".join(row["labels"] or ()),
                }
                for row in facts["golden"]
            ],
            empty="it is in none",
        ),
        _runs(facts),
    ]


def _is_page(facts: Facts) -> bool:
    return facts["document"] is not None and facts["document"].get("media_type") in PAGES


def _described(facts: Facts) -> Step:
    rows, page = _fields(facts["document"] or {}), facts["found_on"]
    if page is not None:
        said = f"{page['media_type']} of source {page['source']}, depth {page['depth']}, doc_id {page['doc_id']}"
        rows.append({"field": "found on", "value": f"{said}: {_error(page['error']) or 'got it'}"})
    return Step(name="document", headings=("field", "value"), rows=rows, empty="no document has it now")


def _shows(facts: Facts) -> Step:
    return Step(
        name="shows",
        headings=("url", "doc_id", "outcome"),
        rows=[
            {"url": row["url"], "doc_id": row["doc_id"], "outcome": _error(row["error"]) or row["media_type"] or ""}
            for row in facts["shows"]
        ],
        empty="no document names it as its page",
    )


def _fetches(facts: Facts) -> Step:
    return Step(
        name="fetches",
        headings=("run", "attempt", "started", "status", "bytes", "ms", "robots", "outcome"),
        rows=[
            {
                "run": row["run_id"],
                "attempt": str(row["attempt"]),
                "started": _text(row["started_at"]),
                "status": _text(row["http_status"]),
                "bytes": readable_bytes(row["bytes"]),
                "ms": f"{row['ms']:.0f}",
                "robots": _text(row["robots"]),
                "outcome": _error(row["error"]) or "got it",
            }
            for row in facts["fetches"]
        ],
        numbers=("attempt", "status", "bytes", "ms"),
        empty="no attempt was made",
    )


def _runs(facts: Facts) -> Step:
    return Step(
        name="runs",
        headings=("run", "status", "started", "ended", "covers"),
        rows=[
            {
                "run": row["run_id"],
                "status": row["status"],
                "started": _text(row["started"]),
                "ended": _text(row["ended"]),
                "covers": ", ".join(row["covers"] or ()),
            }
            for row in facts["runs"]
        ],
    )


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return "" if value is None else str(value)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _error(error: Facts | None) -> str:
    if error is None:
        return ""
    kind = "retryable" if error["code"] in RETRYABLE else "final"
    return f"{error['code']} ({error['stage']}, {kind})" + (f": {error['detail']}" if error["detail"] else "")


def _outcome(one: Facts) -> str:
    said = dict.fromkeys(_error(error) for error in one["errors"])
    return "; ".join(said) if said else "looked" if one["frames"] else "not tried"


def _fields(row: Facts) -> list[dict[str, str]]:
    """The fields of a row that say something."""
    shown = {
        name: _error(value) if name == "error" else _text(value) for name, value in row.items() if value is not None
    }
    return [{"field": name, "value": value} for name, value in shown.items() if value]


def _stored(media: Facts) -> dict[str, Any]:
    """A row of `media` with its size for reading, and where its bytes are."""
    where = (
        "in the row" if media["pack_uri"] is None else f"{media['pack_uri']}, {media['offset']} to {media['length']}"
    )
    rest = {name: value for name, value in media.items() if name not in ("pack_uri", "offset", "length")}
    return rest | {"size_bytes": f"{media['size_bytes']} ({readable_bytes(media['size_bytes'])})", "stored": where}


def next_commands(facts: Facts) -> list[str]:
    """What to type to featurize this document again, on a lake of its own; nothing for a page."""
    if facts["document"] is None or _is_page(facts):
        return []
    doc_id = facts["document"]["doc_id"]
    where = f"--where \"doc_id = '{doc_id}'\""
    lake, shard = shlex.quote(facts["lake"].removeprefix("file://")), f"./shard-{doc_id[:8]}"
    return [
        f"lakelens sample --lake {lake} --fraction 1 {where} --out {shard}",
        f"lakelens featurize --lake {shard} {where} --retry-errors",
        f"lakelens explain --lake {shard} {doc_id}",
    ]


# -- the page -----------------------------------------------------------------------------------------------------


def pictures(facts: Facts) -> list[Picture]:
    """Its frames with what one featurizer of each kind found: the champion's, else what is published, else any."""
    drawn: dict[str, Facts] = {}
    for one in sorted(
        facts["outcomes"], key=lambda one: (not one["champion"], not one["published"], one["featurizer"])
    ):
        if one["found"]:
            drawn.setdefault(kind_of(one["featurizer"]), one)
    shown = []
    for frame in facts["frames"][:SHOWN_PICTURES]:
        rows = [
            {"featurizer": one["featurizer"], "code": None,
             "found": [found for found in one["found"] if found["frame"] == frame["frame"]]}
            for one in drawn.values()
        ]  # fmt: skip
        shown.append(picture_of(frame, rows, facts["document"] or {}))
    return shown


def render(facts: Facts) -> str:
    """The page: complete in itself, every text from outside escaped."""
    document, media = facts["document"], facts["media"]
    errors = [_error(document["error"])] if document and document["error"] else []
    errors += list(dict.fromkeys(_error(e) for one in facts["outcomes"] for e in one["errors"]))
    title = file_name(document["url"]) if document else media["media_id"]
    return pages().get_template("explain.html.j2").render(
        facts=facts, title=title, errors=errors, pictures=pictures(facts), steps=steps(facts),
        commands=next_commands(facts), written_at=datetime.now(UTC), version=code_version(),
    )  # fmt: skip


def write_page(lake: Lake, name: str, html: str) -> Path:
    """Write the page into the reports of a lake on this machine, else, or where that is not allowed, a new folder."""
    try:
        folder = reports_folder(lake, "explain")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.html"
        path.write_text(html, encoding="utf-8")
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="lakelens-")) / f"{name}.html"
        path.write_text(html, encoding="utf-8")
    return path
