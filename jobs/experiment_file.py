"""What an experiment file states, checked whole before Spark starts. Knows no lake and no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.config import ConfigError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantConf(_Part):
    """A featurizer, and what is set for it over the configuration, by dotted keys."""

    featurizer: str
    set: dict[str, Any] = Field(default_factory=dict)


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
    baseline: str
    variants: dict[str, VariantConf] = Field(min_length=2)
    metrics: dict[str, MetricConf] = Field(min_length=1)  # the first decides
    slices: tuple[str, ...] = ()
    guardrails: Guardrails = Guardrails()
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    repeats: int = Field(default=5, ge=3)
    timed_media: int = Field(default=24, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> Experiment:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, allowed: {', '.join(self.variants)}")
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
