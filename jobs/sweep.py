"""What a sweep tries, a grid or what a search proposes from its results; the best of that. Knows no lake, no metric."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.config import ConfigError
from jobs.experiment_file import FEATURIZER, MAX_VARIANTS, Experiment, Range, Sweep, VariantConf

Settings = Mapping[str, Any]  # key -> value, for one variant
# quality, of which more is better, and two costs, of which less is: milliseconds and dollars, or ratios of them
Objectives = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a search tried."""

    name: str
    settings: Mapping[str, Any]  # key -> value
    objectives: Objectives  # on the items that the search saw; costs as ratios to the baseline's


def grid(sweep: Sweep) -> dict[str, VariantConf]:
    """A variant for every combination of the values, the last key changing fastest; raises ConfigError."""
    values = {key: each for key, each in sweep.over.items() if not isinstance(each, Range)}
    n_variants = math.prod(map(len, values.values()))
    if n_variants > MAX_VARIANTS:
        raise ConfigError(f"the grid has {n_variants} variants, allowed: {MAX_VARIANTS}; take method: search")
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    found = {variant_name(each): variant(sweep, each) for each in combinations}
    if len(found) < n_variants:
        raise ConfigError(f"two of the grid's {n_variants} variants have one name, such as {next(iter(found))}")
    return found


def variant(sweep: Sweep, settings: Settings) -> VariantConf:
    """The variant of one combination."""
    featurizer = settings.get(FEATURIZER, sweep.featurizer)
    return VariantConf(featurizer=str(featurizer), set={k: v for k, v in settings.items() if k != FEATURIZER})


def variant_name(settings: Settings) -> str:
    """What a combination is called: the last word of each key and its value, in letters that a run id allows."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
    name = re.sub(r"[^A-Za-z0-9_+.-]", "-", ".".join(parts)).strip("-.")
    if len(name) <= 80:
        return name
    return f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def with_grid(experiment: Experiment) -> Experiment:
    """The experiment with its grid's variants among its own; one that searches, or sweeps nothing, as it is.

    Raises ConfigError for a combination that has the name of a variant.
    """
    if experiment.sweep is None or experiment.sweep.method != "grid":
        return experiment
    made = grid(experiment.sweep)
    if twice := sorted(set(made) & set(experiment.variants)):
        raise ConfigError(f"experiment {experiment.name}: variant {twice[0]} is named and in the grid; rename it")
    return experiment.model_copy(update={"variants": experiment.variants | made, "sweep": None})


def is_searched(item: str, *, share: float, seed: int) -> bool:
    """Whether an item is one of those that a search sees; equal items always fall on the same side."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {item}".encode()).digest()[:8], "big")
    return drawn < share * 2**64


class Search:
    """Settings proposed one after another, by Optuna's tree-structured Parzen estimator for several objectives.

    Equal seeds and equal results lead to equal proposals, so that a search that died is repeated from its results.
    """

    def __init__(self, over: Mapping[str, Sequence[Any] | Range], *, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, 2 * len(over)))
        self._study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
        self._over = over
        self._asked: Any = None

    def ask(self) -> Settings:
        """What to try next."""
        self._asked = self._study.ask()
        return {key: self._suggest(key, values) for key, values in self._over.items()}

    def _suggest(self, key: str, values: Sequence[Any] | Range) -> Any:
        if not isinstance(values, Range):  # by place, for Optuna compares values and true is 1
            return values[self._asked.suggest_categorical(key, list(range(len(values))))]
        if isinstance(values.low, int) and isinstance(values.high, int):
            return self._asked.suggest_int(key, values.low, values.high, log=values.log)
        return self._asked.suggest_float(key, float(values.low), float(values.high), log=values.log)

    def tell(self, objectives: Objectives) -> None:
        """What came of it."""
        self._study.tell(self._asked, list(objectives))


def dominates(one: Objectives, other: Objectives) -> bool:
    """Whether `one` is nowhere worse and somewhere better: quality higher, milliseconds and dollars lower."""
    return one != other and one[0] >= other[0] and one[1] <= other[1] and one[2] <= other[2]


def pareto_front(points: Sequence[Objectives]) -> list[bool]:
    """Which points (quality, milliseconds, dollars) no other dominates; equal ones stand or fall together."""
    return [not any(dominates(other, point) for other in points) for point in points]


def best(trials: Sequence[Trial], n: int) -> list[Trial]:
    """At most `n` of the trials that no other dominates, the best quality first; equal ones once, the first of them."""
    on_front = pareto_front([trial.objectives for trial in trials])
    front = [trial for trial, on in zip(trials, on_front, strict=True) if on]
    found: dict[Objectives, Trial] = {}
    for trial in sorted(front, key=lambda trial: -trial.objectives[0]):
        found.setdefault(trial.objectives, trial)
    return list(found.values())[:n]


def key_of(settings: Settings) -> str:
    """Equal for equal settings."""
    return json.dumps(settings, sort_keys=True)
