"""The configuration: read once on the driver, checked whole before Spark starts. Knows no Spark."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from jobs.robots import OPT_OUTS
from jobs.urls import InvalidUrl, canonical_host


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Spark(_Section):
    master: str = "local[*]"
    driver_memory: str = "1g"
    gpus: int = Field(default=0, ge=0)
    gpu_kind: str | None = None
    log: Literal["text", "json"] = "text"
    settings: dict[str, str] = Field(default_factory=dict)


class Source(_Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    kind: Literal["folder", "urls", "warc", "wat", "webdataset", "table", "site"]
    uri: str = ""
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)  # higher is fetched first
    archive: str | None = None  # of a table like Common Crawl's index: folder that its names of WARC files start from

    drop_parameters: tuple[str, ...] = ()  # taken out of URLs: names, or how they begin, such as utm_*
    # Of a site: URLs to enter it by; the hosts to keep to, exactly (if none, those of the starts, and where these lead
    # within their domains); how many links to follow from a start.
    start: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    depth: int = Field(default=2, ge=0, le=20)
    sitemaps: bool = True
    max_pages: int = Field(default=100_000, ge=1)  # of a host

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...], said: ValidationInfo) -> tuple[str, ...]:
        try:
            return tuple(canonical_host(host) for host in hosts)
        except InvalidUrl as e:
            allowed = "hosts as URLs have them, such as www.example.org and example.org:8080"
            raise ValueError(f"source {said.data.get('name')}: {e}, allowed: {allowed}") from e

    @model_validator(mode="after")
    def _says_where(self) -> Source:
        needed, refused = ("start", "uri") if self.kind == "site" else ("uri", "start")
        if not getattr(self, needed):
            raise ValueError(f"source {self.name} of kind {self.kind} needs {needed}")
        if getattr(self, refused):
            raise ValueError(f"source {self.name} of kind {self.kind} takes {needed}, not {refused}")
        if self.archive is not None and self.kind != "table":
            raise ValueError(f"source {self.name} of kind {self.kind} takes no archive, only a table does")
        of_sites = [name for name in ("hosts", "depth", "sitemaps", "max_pages") if name in self.model_fields_set]
        if of_sites and self.kind != "site":
            raise ValueError(f"source {self.name} of kind {self.kind} takes no {of_sites[0]}, only a site does")
        return self


class Recrawl(_Section):
    first_days: float = Field(gt=0)
    least_days: float = Field(gt=0)
    most_days: float = Field(gt=0)
    n_gone: int = Field(ge=1)


class Crawl(_Section):
    sources: tuple[Source, ...] = ()
    contact: str | None = None
    max_connections_per_host: int = Field(ge=1, le=64)
    connections_per_task: int = Field(ge=1, le=10_000)
    delay_s: float = Field(ge=0)
    rate_per_minute: float | None = Field(default=None, gt=0)
    burst: int = Field(ge=1)
    round_s: float = Field(gt=0)
    connect_timeout_s: float = Field(gt=0)
    timeout_s: float = Field(gt=0)
    max_bytes: int = Field(gt=0)
    inline_bytes: int = Field(gt=0, le=100 << 20)  # a row of more stalls what reads the table
    max_redirects: int = Field(ge=0, le=20)
    max_attempts: int = Field(ge=1, le=10)
    allow_addresses: tuple[str, ...] = ()
    opt_outs: tuple[str, ...]
    recrawl: Recrawl
    retry_errors: tuple[str, ...] = ()
    wave_documents: int | None = Field(default=None, ge=1)
    max_hours: float = Field(gt=0)

    @field_validator("opt_outs")
    @classmethod
    def _are_known(cls, opt_outs: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in opt_outs if name not in OPT_OUTS]:
            raise ValueError(f"{unknown[0]!r} is none that we know, allowed: {', '.join(sorted(OPT_OUTS))}")
        return opt_outs


class Model(_Section):
    uri: str
    precision: Literal["float32", "float16", "bfloat16"] = "float32"


class Featurize(_Section):
    featurizers: tuple[str, ...]
    models: dict[str, str | Model] = Field(default_factory=dict)
    catalogue: str | None = None
    decode_profile: Literal["exact", "fast"] = "exact"
    max_frames_per_video: int = Field(ge=1)
    max_pixels: int = Field(ge=1)
    link_captions: bool = True
    wave_media: int = Field(ge=1)
    wave_bytes: int = Field(ge=1)
    stall_s: float = Field(gt=0)
    heartbeat_s: float = Field(gt=0)
    lease_expiry_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _lease_outlives_missed_beats(self) -> Featurize:
        if self.lease_expiry_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"lease_expiry_s is {self.lease_expiry_s:g}, allowed: at least 3 heartbeats of {self.heartbeat_s:g} s"
            )
        return self


class ErrorBudget(_Section):
    documents: float = Field(ge=0, le=1)
    features: float = Field(ge=0, le=1)
    mentions: float = Field(ge=0, le=1)


class Check(_Section):
    max_error_rate: ErrorBudget


class Golden(_Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    kind: Literal["boxes", "labels", "queries", "copies", "text"]
    labels: str  # a file, or for labels a folder of folders
    pictures: str = ""  # folder or URL that file names of the labels are relative to
    card: dict[str, str] = Field(default_factory=dict)  # what it is, its licence, its known bias


class Evaluate(_Section):
    golden: tuple[str, ...] = ()
    bridge_labels: int = Field(ge=1)


class Maintain(_Section):
    # What runs read is kept by their own age; below an hour the clocks of machines and stores begin to matter.
    retention_hours: float = Field(ge=1, le=720, allow_inf_nan=False)  # schemas.table.MAX_RETENTION_DAYS


Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(_Section):
    usd_per_core_hour: Usd
    usd_per_gpu_hour: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], Usd] = Field(default_factory=dict)
    usd_per_gb_month: Usd
    usd_per_gb_fetched: Usd
    usd_per_gb_moved: Usd = 0.0
    usd_per_million_requests: Usd = 0.0


class Config(_Section):
    """The resolved configuration of one command."""

    lake: str
    spark: Spark
    crawl: Crawl
    featurize: Featurize
    check: Check
    golden: tuple[Golden, ...] = ()
    evaluate: Evaluate
    maintain: Maintain
    prices: Prices

    @model_validator(mode="after")
    def _gpus_have_a_price(self) -> Config:
        known = self.prices.usd_per_gpu_hour
        if self.spark.gpus and self.spark.gpu_kind not in known:
            raise ValueError(
                f"spark.gpus is {self.spark.gpus} and spark.gpu_kind is {self.spark.gpu_kind!r}, allowed: "
                f"{', '.join(sorted(known))}; prices.usd_per_gpu_hour takes other kinds too"
            )
        return self

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON form."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` replaced, mappings merged key by key; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_assignment(text: str) -> dict[str, Any]:
    """`a.b=c` as {"a": {"b": c}}, c read as YAML; raises ConfigError."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text!r} is not of the form key.key=value")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ConfigError(f"--set {text!r}: the value is not YAML: {e}") from e
    for key in reversed(path.strip().split(".")):
        parsed = {key: parsed}
    assert isinstance(parsed, dict)
    return parsed


def _read_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(e).split())}") from e
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"{name} holds a {type(parsed).__name__}, a mapping of keys is needed")
    return parsed


def _allowed_keys(location: Sequence[str | int]) -> list[str]:
    model: Any = Config
    for part in location:
        if isinstance(part, int):  # of a tuple of sections
            model = get_args(model)[0] if get_args(model) else model
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        model = field.annotation
    return sorted(getattr(model, "model_fields", {}))


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        name = ".".join(map(str, location))
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(_allowed_keys(location[:-1]))
            lines.append(f"{name} is not a configuration key; allowed here: {allowed}")
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing")
        elif problem["type"] == "value_error":  # of a whole section
            lines.append(f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"]))
        else:
            lines.append(f"{name} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)


def built_in(name: str) -> str:
    """Text of conf/NAME, which stands beside the package: in a checkout, in site-packages, in a zip."""
    package = importlib.resources.files("jobs")
    folder: Path = package.parent  # type: ignore[attr-defined]  # pathlib.Path, or zipfile.Path which has the same
    return (folder / "conf" / name).read_text(encoding="utf-8")


def load_config(
    files: Sequence[Path] = (), assignments: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> Config:
    """The built-in configuration with `files`, then `overrides`, then `assignments` laid over it.

    Raises ConfigError, naming the file or key, the value and what is allowed.
    """
    raw: dict[str, Any] = {}
    for name in ("base.yaml", "prices.yaml"):
        raw = merge(raw, _read_yaml(built_in(name), f"conf/{name}"))
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"configuration file {file} cannot be read: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"configuration file {file} is not UTF-8: {e}") from e
        raw = merge(raw, _read_yaml(text, str(file)))
    raw = merge(raw, overrides or {})
    for assignment in assignments:
        raw = merge(raw, parse_assignment(assignment))
    try:
        return Config.model_validate(raw)
    except ValidationError as e:
        raise ConfigError(_explain(e)) from e
