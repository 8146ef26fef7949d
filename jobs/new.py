"""`lakelens new featurizer`: the files that a scientist starts from, written into a checkout. Knows no model."""

from __future__ import annotations

import importlib.resources
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from featurizers.spec import KINDS
from jobs.command import FINISHED, Ending
from jobs.config import ConfigError, load_config

WORD = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
MAX_NAME, MAX_VARIANT = 36, 20  # characters: what the templates write stays within a line of 120
# The golden set and the metric that an experiment with a featurizer of a kind decides by. The sample sets are in the
# demo's lake: captions, since the 20 classes of its concepts are too few for an interval (jobs.paired), and no boxes.
DECIDED_BY = {
    "concept": ("sample-captions", "ndcg_at_10"),
    "object": ("boxes", "average_precision_50"),
    "entity": ("sample-signs", "entity_f1"),
}
ADD_BOXES = "lakelens golden add boxes --kind boxes --labels INSTANCES.json --pictures FOLDER"
NEEDED = ("featurizers/spec.py", "tests/contract_pictures.py", "conf/base.yaml")  # what tells a checkout


class NewRefused(ConfigError):
    """The name, the folder or a file that is there already stands against it; nothing was written."""


class GoldenVectorsFailed(RuntimeError):
    """The golden vectors of a new featurizer could not be made; what had been written was removed."""


@dataclass(frozen=True, kw_only=True)
class NewFeaturizer:
    """A featurizer that is to be written; its parts are checked."""

    kind: str
    model: str
    variant: str

    @property
    def name(self) -> str:
        """Its family, which is the name of its file."""
        return f"{self.kind}_{self.model}"

    @property
    def id(self) -> str:
        """Of its spec."""
        return f"{self.name}.{self.variant}@1"


def named(name: str, variant: str) -> NewFeaturizer:
    """The featurizer of that name; raises NewRefused, saying what is allowed."""
    kind, _, model = name.partition("_")
    if kind not in KINDS:
        raise NewRefused(
            f"the kind {kind!r} of {name!r} is not known, allowed: {', '.join(KINDS)}, as in {KINDS[0]}_tinynet"
        )
    if not WORD.fullmatch(model) or len(name) > MAX_NAME:
        raise NewRefused(
            f"NAME is {name!r}, allowed: {kind}_ and a model of lower-case letters, digits and single _, "
            f"at most {MAX_NAME} characters in all"
        )
    if not WORD.fullmatch(variant) or len(variant) > MAX_VARIANT:
        raise NewRefused(
            f"--variant is {variant!r}, allowed: lower-case letters, digits and single _, "
            f"at most {MAX_VARIANT} characters"
        )
    return NewFeaturizer(kind=kind, model=model, variant=variant)


def render(template: str, **values: object) -> str:
    """The text of jobs/new_featurizer/TEMPLATE.j2."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = importlib.resources.files("jobs").joinpath("new_featurizer")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(f"{template}.j2").render(values)


def default_of(kind: str) -> str:
    """The id of the featurizer of a kind that runs where nothing else is configured."""
    return next(one for one in load_config().featurize.featurizers if one.startswith(f"{kind}_"))


def add_golden(kind: str) -> str | None:
    """The command that makes the golden set of a kind's experiment, None where the demo has made it."""
    return ADD_BOXES if kind == "object" else None


def files_of(new: NewFeaturizer) -> dict[str, str]:
    """Path in the checkout -> text of the module and of the experiment."""
    module, experiment = f"featurizers/{new.name}.py", f"conf/experiments/{new.name}.yaml"
    values = {"name": new.name, "kind": new.kind, "model": new.model, "variant": new.variant}
    baseline = default_of(new.kind)
    golden, metric = DECIDED_BY[new.kind]
    compared = {"baseline": baseline, "baseline_family": baseline.partition(".")[0], "golden": golden, "metric": metric}
    commands = {"command": f"lakelens experiment {experiment}", "add_golden": add_golden(new.kind)}
    return {
        module: render(f"{new.kind}.py", **values),
        experiment: render("experiment.yaml", **values, **compared, **commands),
    }


def new_featurizer(name: str, *, variant: str, root: Path) -> Ending:
    """Write the module, the golden vectors and the experiment of a new featurizer into the checkout at `root`.

    All of them or none. Raises NewRefused and GoldenVectorsFailed.
    """
    new = named(name, variant)
    missing = [file for file in NEEDED if not (root / file).is_file()]
    if missing:
        raise NewRefused(
            f"{root} is no checkout of Lakelens: {missing[0]} is not there; "
            "cd to the folder that holds featurizers/, tests/ and conf/"
        )
    texts = files_of(new)
    module, experiment = texts
    written = [module, f"tests/data/golden_vectors/{new.id}.npz", experiment]
    for file in written:
        if os.path.lexists(root / file):
            raise NewRefused(f"{file} is already there, and nothing is overwritten; choose another NAME or remove it")
    with ExitStack() as undo:
        _write(root / module, texts[module], undo)
        undo.callback((root / written[1]).unlink, missing_ok=True)
        _make_golden_vectors(new, root)
        _write(root / experiment, texts[experiment], undo)
        undo.pop_all()
    following = [
        f"pytest tests/test_featurizer_contract.py -k {new.name}",
        *filter(None, [add_golden(new.kind)]),
        f"lakelens experiment {experiment}",
    ]
    return Ending(
        exit_code=FINISHED,
        message=f"wrote {', '.join(written)}; next: {' && '.join(following)}",
        facts={"written": written, "next": following},
    )


def _write(path: Path, text: str, undo: ExitStack) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        undo.callback(path.unlink, missing_ok=True)
        file.write(text)


def _make_golden_vectors(new: NewFeaturizer, root: Path) -> None:
    """Run the command that also renews them, on the code of the checkout, whatever is installed."""
    command = [sys.executable, "-m", "tests.contract_pictures", new.id]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise GoldenVectorsFailed(
            f"the golden vectors of {new.id} could not be made, so nothing was written; "
            f"python -m tests.contract_pictures ended with: {said[0]}"
        )
