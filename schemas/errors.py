"""The closed list of what can go wrong with one document, and which of it is worth another try."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypedDict

import pyarrow as pa

Stage = Literal["fetch", "decode", "infer"]
DETAIL_LENGTH = 200  # characters kept of an error's detail

ERROR_TYPE = pa.struct([("stage", pa.string()), ("code", pa.string()), ("detail", pa.string())])


class Error(TypedDict):
    """One error as it stands in a row."""

    stage: Stage
    code: str
    detail: str


class ErrorCode(StrEnum):
    """Codes are metric keys: never rename one without a migration."""

    ROBOTS_DISALLOWED = "robots_disallowed"
    OPTED_OUT = "opted_out"
    TAKEN_DOWN = "taken_down"
    BLOCKED_ADDRESS = "blocked_address"
    DNS_FAILURE = "dns_failure"
    CONNECTION_FAILED = "connection_failed"
    TLS_INVALID = "tls_invalid"
    TIMEOUT = "timeout"
    NOT_FOUND = "not_found"
    HTTP_CLIENT_ERROR = "http_client_error"
    RATE_LIMITED = "rate_limited"
    HTTP_SERVER_ERROR = "http_server_error"
    REDIRECT_REFUSED = "redirect_refused"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    NOT_MEDIA = "not_media"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DEFERRED = "deferred"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    PIXEL_LIMIT = "pixel_limit"
    NO_FRAMES = "no_frames"
    STORAGE = "storage"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_FAILED = "model_failed"


_DECODE = {ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE, ErrorCode.PIXEL_LIMIT, ErrorCode.NO_FRAMES, ErrorCode.STORAGE}
_INFER = {ErrorCode.OUT_OF_MEMORY, ErrorCode.MODEL_FAILED}

RETRYABLE = frozenset(
    {
        ErrorCode.DNS_FAILURE,
        ErrorCode.CONNECTION_FAILED,
        ErrorCode.TIMEOUT,
        ErrorCode.RATE_LIMITED,
        ErrorCode.HTTP_SERVER_ERROR,
        ErrorCode.DEFERRED,
        ErrorCode.STORAGE,
        ErrorCode.OUT_OF_MEMORY,
    }
)


def stage_of(code: ErrorCode) -> Stage:
    """The stage a code belongs to."""
    return "decode" if code in _DECODE else "infer" if code in _INFER else "fetch"


def error(code: ErrorCode, detail: str) -> Error:
    """The row form of an error, its detail cut to `DETAIL_LENGTH` characters on one line."""
    return {"stage": stage_of(code), "code": str(code), "detail": " ".join(detail.split())[:DETAIL_LENGTH]}
