"""What an experiment file states, checked whole before Spark starts. Knows no lake and no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.config import ConfigError

VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,99}")  # it is part of run ids
MAX_VARIANTS = 64  # each is featurized, timed in turn with all others, and corrected for
FEATURIZER = "featurizer"  # the key of a sweep that is not one of the configuration


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantConf(_Part):
    """A featurizer, and what is set for it over the configuration, by dotted keys."""

    featurizer: str  # a spec id, or id#first digits of the fingerprint that it must have
    set: dict[str, Any] = Field(default_factory=dict)


class Range(_Part):
    """Numbers from `low` to `high`, whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            allowed = "low below high, and above 0 where log is set"
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, allowed: {allowed}")
        return self

    @property
    def between(self) -> int | float:
        """One of the numbers that is no end, and not whole where fractions are allowed."""
        middle = self.low + 0.37 * (self.high - self.low)
        return round(middle) if isinstance(self.low, int) and isinstance(self.high, int) else middle


class Sweep(_Part):
    """Values of keys that become variants: every combination, or those that a search proposes one after another.

    A search sees one part of the golden set's items; what it proposes is judged on the others, since the best of many
    tries on the same items looks better than it is.
    """

    over: dict[str, tuple[bool | int | float | str, ...] | Range] = Field(min_length=1)  # a key of the configuration,
    # or `featurizer` -> its values
    featurizer: str | None = None  # of all of them, unless `over` names it
    method: Literal["grid", "search"] = "grid"
    trials: int = Field(default=20, ge=2, le=1000)  # of a search
    confirm: int = Field(default=3, ge=1, le=20)  # of a search: how many of its best are judged
    search_share: float = Field(default=0.5, gt=0, lt=1)  # of the items

    @model_validator(mode="after")
    def _can_be_made(self) -> Sweep:
        if (self.featurizer is None) == (FEATURIZER not in self.over):
            raise ValueError("the featurizer is needed once, as sweep.featurizer or as a key of sweep.over")
        for key, values in self.over.items():
            if isinstance(values, Range) and self.method == "grid":
                raise ValueError(f"{key} is a range, which a grid has no values of; list them, or take method: search")
            if not isinstance(values, Range) and len(set(map(repr, values))) < max(1, len(values)):
                raise ValueError(f"{key} is {list(values)}, allowed: one value or several, each once")
        return self


class MetricConf(_Part):
    """The largest difference that does not matter."""

    margin: float = Field(gt=0)


class Limit(_Part):
    """Times the baseline's for p95_ms and usd_per_million, above the baseline's for error_rate."""

    at_most: float = Field(ge=0)


class Guardrails(_Part):
    p95_ms: Limit | None = None
    usd_per_million: Limit | None = None
    error_rate: Limit | None = None


class Experiment(_Part):
    """An experiment file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    question: str = ""
    golden: str  # a golden set, or set@version
    features_version: int | None = None  # to repeat a comparison: read then, and nothing is computed
    baseline: str
    variants: dict[str, VariantConf] = Field(min_length=1)
    sweep: Sweep | None = None
    metrics: dict[str, MetricConf] = Field(min_length=1)  # the first decides
    slices: tuple[str, ...] = ()
    guardrails: Guardrails = Guardrails()
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    repeats: int = Field(default=5, ge=3)
    timed_media: int = Field(default=24, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _can_be_compared(self) -> Experiment:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, allowed: {', '.join(self.variants)}")
        if len(self.variants) < 2 and self.sweep is None:
            raise ValueError(f"variants holds {self.baseline!r} alone; name another one, or a sweep")
        if wrong := [name for name in self.variants if not VARIANT_NAME.fullmatch(name)]:
            raise ValueError(f"variant {wrong[0]!r} is not allowed: letters, digits and . _ + - only")
        if self.features_version is not None and self.sweep is not None and self.sweep.method == "search":
            raise ValueError("a search computes what it tries, and features_version says that nothing is computed")
        return self


def read_experiment(path: Path) -> Experiment:
    """An experiment file; raises ConfigError, naming the key, the value and what is allowed."""
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"experiment {path} cannot be read: {' '.join(str(e).split())}") from e
    return checked(stated, f"experiment {path}")


def checked(stated: object, name: str) -> Experiment:
    """What is stated as an experiment; raises ConfigError, which names it."""
    try:
        return Experiment.model_validate(stated)
    except ValidationError as e:
        said = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in e.errors())
        raise ConfigError(f"{name}: {said}") from e


def two_featurizers(baseline: str, candidate: str, *, golden: str, metrics: Sequence[str], margin: float) -> Experiment:
    """The experiment of `lakelens compare`; raises ConfigError."""
    described = {
        "name": "compare",
        "question": f"Is {candidate} better than {baseline}?",
        "golden": golden,
        "baseline": "baseline",
        "variants": {"baseline": {"featurizer": baseline}, "candidate": {"featurizer": candidate}},
        "metrics": {metric: {"margin": margin} for metric in metrics},
    }
    return checked(described, "lakelens compare")
