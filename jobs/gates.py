"""The rules that rows of each table keep, as SQL that is true where a row breaks one. Knows no Spark and no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas import DOCUMENTS, FEATURES, FETCHES, FRAMES, MEDIA, MENTIONS, Table
from schemas.documents import N_HOST_BUCKETS
from schemas.errors import DETAIL_LENGTH, ErrorCode, Stage, stage_of

NORM_TOLERANCE = 1e-3  # the contract of a featurizer, featurizers.spec.check_features
PAGES = ("page", "sitemap")  # media types of what is read for what it leads to, and has no media
IS_PAGE = f"coalesce(media_type, '') IN {PAGES}"  # of documents
UNREAD = ("content", "thumbnail")  # bytes, which a gate does not read; Delta itself refuses a null thumbnail


@dataclass(frozen=True)
class Rule:
    """What every row of a table keeps.

    `breach` is SQL over the table's columns and the facts that `jobs.check` joins to them: `repeated`, `media_known`,
    `document_known`, `frame_known`, `incomplete`, `held_twice`, each true or null. A null breach is none.
    """

    name: str
    says: str
    breach: str


def _any(condition: str) -> str:
    return f"exists(features, f -> {condition})"


def _unless(condition: str) -> str:
    return f"NOT coalesce({condition}, false)"


def _codes(*stages: Stage) -> str:
    allowed = [
        f"(error.stage = '{stage}' AND error.code IN ({', '.join(repr(str(c)) for c in codes)}))"
        for stage in stages
        for codes in [[code for code in ErrorCode if stage_of(code) == stage]]
    ]
    return f"error IS NOT NULL AND {_unless(' OR '.join(allowed))}"


def common_rules(table: Table, *stages: Stage) -> list[Rule]:
    """Rules of every table: its required columns, its key, and the error codes of `stages`."""
    required = [c.name for c in table.columns if not c.nullable and c.name not in UNREAD]
    rules = [
        Rule("required_columns", f"{', '.join(required)} are not null", " OR ".join(f"{c} IS NULL" for c in required)),
        Rule("key_unique", f"one row for each ({', '.join(table.key)}) in the whole table", "repeated"),
    ]
    if stages:
        rules += [
            Rule("error_code", f"an error carries a code of its stage: {', '.join(stages)}", _codes(*stages)),
            Rule(
                "error_detail",
                f"a detail has at most {DETAIL_LENGTH} characters",
                f"length(error.detail) > {DETAIL_LENGTH}",
            ),
        ]
    return rules


def feature_rules(dims: Mapping[str, int]) -> list[Rule]:
    """Rules of the `features` and `error` columns; `dims` is the vector length of each known featurizer."""
    known = " ".join(f"WHEN '{name}' THEN {dim}" for name, dim in sorted(dims.items()))
    dim = f"CASE featurizer {known} END" if known else "CAST(NULL AS INT)"
    norm = "sqrt(aggregate(f.vector, 0D, (total, v) -> total + CAST(v AS DOUBLE) * v))"
    box = [f"get(f.box, {i})" for i in range(4)]
    ordered = f"size(f.box) = 4 AND 0 <= {box[0]} AND {box[0]} <= {box[2]} AND {box[2]} <= 1"
    ordered += f" AND 0 <= {box[1]} AND {box[1]} <= {box[3]} AND {box[3]} <= 1"
    return [
        Rule("features_or_error", "exactly one of features and error is null", "(features IS NULL) = (error IS NULL)"),
        Rule("vector_length", "a vector is as long as its featurizer says", _any(f"size(f.vector) <> {dim}")),
        Rule(
            "vector_norm",
            f"a vector is finite and of unit length within {NORM_TOLERANCE:g}",
            _any(f"f.vector IS NOT NULL AND {_unless(f'abs({norm} - 1) <= {NORM_TOLERANCE!r}D')}"),
        ),
        Rule(
            "feature_not_empty",
            "a feature has a vector or names something",
            _any("f IS NULL OR (f.vector IS NULL AND f.label IS NULL)"),
        ),
        Rule(
            "box_inside",
            "a box is x0, y0, x1, y1, ordered, as fractions of the frame",
            _any(f"f.box IS NOT NULL AND {_unless(ordered)}"),
        ),
        Rule(
            "score_range", "a score is in [0, 1]", _any(f"f.score IS NOT NULL AND {_unless('f.score BETWEEN 0 AND 1')}")
        ),
    ]


def _negative(*columns: str) -> str:
    return " OR ".join(f"{c} < 0 OR isnan({c})" for c in columns)


FETCHES_RULES = [
    *common_rules(FETCHES, "fetch"),
    Rule("document_known", "its document is in documents", "document_known IS NULL"),
    Rule(
        "robots_decision",
        "a robots decision is allowed, disallowed, absent, unreachable or null",
        "robots NOT IN ('allowed', 'disallowed', 'absent', 'unreachable')",
    ),
    Rule(
        "counts",
        "attempts count from 1; requests, bytes and ms are not negative",
        f"attempt < 1 OR bytes < 0 OR n_requests < 0 OR {_negative('ms')}",
    ),
]
DOCUMENTS_RULES = [
    *common_rules(DOCUMENTS, "fetch"),
    Rule(  # of a sample shard's hashed URL the digest stands in its place
        "doc_id",
        "doc_id is the digest of the URL",
        "doc_id <> substring(if(url LIKE 'sha256:%', substring(url, 8), sha2(url, 256)), 1, 32)",
    ),
    Rule("media_known", "its media is in media", "media_id IS NOT NULL AND media_known IS NULL"),
    Rule(
        "media_type",
        "media_type is image or video of media, page or sitemap of what has none",
        "media_type NOT IN ('image', 'video', 'page', 'sitemap') OR (media_id IS NOT NULL AND media_type IS NULL)"
        f" OR (media_id IS NOT NULL AND {IS_PAGE})",
    ),
    Rule(
        "outcome",
        "a document that was tried has media or an error, or is a page or sitemap",
        f"fetched_at IS NOT NULL AND media_id IS NULL AND error IS NULL AND NOT {IS_PAGE}",
    ),
    Rule(
        "host_bucket",
        f"host_bucket is in 0..{N_HOST_BUCKETS - 1}",
        f"host_bucket NOT BETWEEN 0 AND {N_HOST_BUCKETS - 1}",
    ),
]
MEDIA_RULES = [
    *common_rules(MEDIA),
    Rule("media_id", "media_id is 64 hex digits", "NOT media_id RLIKE '^[0-9a-f]{64}$'"),
    Rule("size", "a media has bytes", "size_bytes <= 0"),
    Rule(
        "reference",
        "a reference names file, offset and length of all the bytes, or none of them",
        "(pack_uri IS NULL) <> (offset IS NULL) OR (pack_uri IS NULL) <> (length IS NULL) OR offset < 0"
        " OR length <> size_bytes",
    ),
    Rule("held_once", "bytes are held inline or by reference, not both", "held_twice"),
    Rule(
        "position",
        "latitude and longitude are degrees",
        "NOT latitude BETWEEN -90 AND 90 OR NOT longitude BETWEEN -180 AND 180",
    ),
]
FRAMES_RULES = [
    *common_rules(FRAMES),
    Rule("media_known", "its media is in media", "media_known IS NULL"),
    Rule(
        "time",
        "frame is time_s in whole milliseconds, not negative",
        "frame < 0 OR NOT abs(time_s * 1000 - frame) <= 1",
    ),
    Rule("size", "width and height are positive", "width <= 0 OR height <= 0"),
]
FEATURES_RULES = [
    Rule("media_known", "its media is in media", "media_known IS NULL"),
    Rule(
        "frame_known",
        "its frame is in frames, unless it was not decoded",
        "frame_known IS NULL AND NOT (error IS NOT NULL AND decode_ms IS NULL)",
    ),
    Rule("frame_complete", "a frame that one featurizer of a run tried has a row of each of them", "incomplete"),
    Rule("fingerprint", "a fingerprint is 32 hex digits", "NOT fingerprint RLIKE '^[0-9a-f]{32}$'"),
    Rule("times", "decode_ms and infer_ms are not negative", _negative("decode_ms", "infer_ms")),
]
MENTIONS_RULES = [
    Rule("document_known", "its document is in documents", "document_known IS NULL"),
    Rule("source", "source is caption, title or gps", "source NOT IN ('caption', 'title', 'gps')"),
    Rule("fingerprint", "a fingerprint is 32 hex digits", "NOT fingerprint RLIKE '^[0-9a-f]{32}$'"),
]


def rules_of(table: Table, dims: Mapping[str, int]) -> Sequence[Rule]:
    """The rules of a table; `dims` is the vector length of each known featurizer, by id."""
    return {
        FETCHES.name: FETCHES_RULES,
        DOCUMENTS.name: DOCUMENTS_RULES,
        MEDIA.name: MEDIA_RULES,
        FRAMES.name: FRAMES_RULES,
        FEATURES.name: [*common_rules(FEATURES, "decode", "infer"), *feature_rules(dims), *FEATURES_RULES],
        MENTIONS.name: [*common_rules(MENTIONS, "infer"), *feature_rules(dims), *MENTIONS_RULES],
    }[table.name]
