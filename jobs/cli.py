"""The `lakelens` command: options in, one job or pipeline run, one last line and an exit code out. Knows no table."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.config import Config, ConfigError, load_config

FINISHED, WORTH_RETRYING, BAD_USAGE, REJECTED = 0, 1, 2, 3

app = typer.Typer(
    name="lakelens",
    help="Crawl pictures and videos into Delta tables, featurize them, check and measure every run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RUN_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.(?!\.)){0,199}")  # it names folders of the lake

LakeOption = Annotated[str | None, typer.Option("--lake", help="Root URI or path of the lake.", metavar="URI")]
ConfOption = Annotated[
    list[Path] | None, typer.Option("--conf", help="YAML laid over conf/base.yaml; repeatable.", metavar="FILE")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One key, as a.b=c; repeatable.", metavar="KEY=C")]
RunIdOption = Annotated[str | None, typer.Option("--run-id", help="Id of the run; resumes it if it failed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show stack traces and Spark's own log.")]
FeaturizerOption = Annotated[list[str] | None, typer.Option("--featurizer", help="Spec id; repeatable.", metavar="ID")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many media.")]
WhereOption = Annotated[str | None, typer.Option("--where", help="SQL condition on documents.")]
SampleOption = Annotated[
    float | None, typer.Option("--sample", min=0, max=1, help="This share of the media, the same ones every time.")
]
FullOption = Annotated[bool, typer.Option("--full", help="Plan over all media, not only what is new.")]
GoldenOption = Annotated[
    str | None, typer.Option("--golden", help="Only the media of this golden set.", metavar="NAME")
]
RetryOption = Annotated[bool, typer.Option("--retry-errors", help="Try final errors again too.")]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command is given."""

    config: Config
    run_id: str
    as_json: bool
    debug: bool


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a command ends with."""

    exit_code: int
    message: str
    facts: dict[str, Any] = field(default_factory=dict)


def exit_code_of(error: BaseException) -> int:
    """1 for what is worth retrying, 2 for what is wrong with the request."""
    from featurizers.catalogue import CatalogueError
    from featurizers.spec import UnknownFeaturizer
    from featurizers.weights import WeightsError, WeightsUnreachable
    from jobs.check import DiscardRefused
    from jobs.evaluate import FeaturesMissing
    from jobs.golden_labels import GoldenError
    from jobs.lake import LakeError
    from jobs.runs import RunPublished
    from jobs.session import SessionError
    from jobs.sources import SourceError

    wrong_request: tuple[type[BaseException], ...] = (
        ConfigError, UnknownFeaturizer, LakeError, SessionError, SourceError, DiscardRefused, RunPublished,
        CatalogueError, WeightsError, GoldenError, FeaturesMissing, PermissionError,
    )  # fmt: skip
    if isinstance(error, WeightsUnreachable):
        return WORTH_RETRYING
    return BAD_USAGE if isinstance(error, wrong_request) else WORTH_RETRYING


def run_of(error: BaseException) -> dict[str, Any]:
    """The run id that a failed command can be given again, where it had begun a run (a note of `jobs.run`)."""
    noted = [note.removeprefix("run_id=") for note in getattr(error, "__notes__", []) if note.startswith("run_id=")]
    return {"run_id": noted[-1]} if noted else {}


def one_line(error: BaseException) -> str:
    """What an error says, in one line: of a Python worker's the exception that ended it, without Spark's words."""
    try:
        said = str(error)
    except Exception:  # Java's exceptions ask the JVM for their text, and it may be what died
        return f"{type(error).__name__}: Spark's JVM is gone; the same --run-id resumes what was committed"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if type(error).__name__ == "Py4JJavaError":  # its first line names a method of Java; the last cause is the reason
        causes = re.findall(r"^(?:: |Caused by: )(?!java\.io\.EOFException)(.+)", said, re.M)
        return causes[-1] if causes else lines[0]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Failed|Unavailable|Incomplete)\b", line)]
    return raised[-1] if type(error).__name__ == "PythonException" and raised else lines[0]


def conclude(command: str, debug: bool, as_json: bool, action: Callable[[], Ending]) -> None:
    """Run `action`; whatever happens ends as one message and an exit code."""
    try:
        outcome = action()
    except KeyboardInterrupt as e:
        begun = run_of(e)  # a plan, say, has nothing that could be resumed
        message = "interrupted; the same --run-id resumes it" if begun else "interrupted"
        outcome = Ending(exit_code=WORTH_RETRYING, message=message, facts=begun)
    except Exception as e:
        if debug:
            traceback.print_exc()
        outcome = Ending(exit_code=exit_code_of(e), message=one_line(e), facts=run_of(e))
    if as_json:
        print(
            json.dumps(
                {"command": command, "exit_code": outcome.exit_code, "message": outcome.message, **outcome.facts}
            )
        )
    else:
        is_failed = outcome.exit_code not in (FINISHED, REJECTED)
        resumed = f" (--run-id {outcome.facts['run_id']})" if is_failed and "run_id" in outcome.facts else ""
        print(f"lakelens {command}: {outcome.message}{resumed}", file=sys.stderr if is_failed else sys.stdout)
    raise typer.Exit(outcome.exit_code)


def _common(
    lake: str | None,
    conf: Sequence[Path] | None,
    assignments: Sequence[str] | None,
    run_id: str | None,
    as_json: bool,
    debug: bool,
    **overrides: Any,
) -> Common:
    from jobs.runs import new_run_name

    changed = {key: value for key, value in overrides.items() if value is not None}
    if lake is not None:
        changed["lake"] = lake
    config = load_config(conf or (), assignments or (), changed)
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"--run-id {run_id!r} is not allowed: letters, digits and . _ + - only, no dots in a row")
    return Common(config=config, run_id=run_id or new_run_name(datetime.now(UTC)), as_json=as_json, debug=debug)


def _show_version(wanted: bool) -> None:
    if wanted:
        from jobs.runs import code_version

        print(f"lakelens {code_version()}")
        raise typer.Exit()


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def crawl(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Fetch the configured sources into fetches, documents and media."""

    def action() -> Ending:
        from jobs.run import run_jobs

        return run_jobs(_common(lake, conf, set_, run_id, json_, debug), ["crawl"])

    conclude("crawl", debug, json_, action)


@app.command()
def featurize(
    featurizer: FeaturizerOption = None, limit: LimitOption = None, where: WhereOption = None,
    sample: SampleOption = None, golden: GoldenOption = None, full: FullOption = False,
    retry_errors: RetryOption = False,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Compute frames, features and mentions of the media that lack them."""

    def action() -> Ending:
        from jobs.run import run_jobs
        from jobs.work import Selection

        chosen = {"featurizers": featurizer} if featurizer else None
        common = _common(lake, conf, set_, run_id, json_, debug, featurize=chosen)
        selection = Selection(
            full=full, retry_errors=retry_errors, limit=limit, where=where, sample=sample, golden=golden
        )
        return run_jobs(common, ["featurize"], selection=selection)

    conclude("featurize", debug, json_, action)


@app.command()
def plan(
    featurizer: FeaturizerOption = None, limit: LimitOption = None, where: WhereOption = None,
    sample: SampleOption = None, golden: GoldenOption = None, full: FullOption = False,
    retry_errors: RetryOption = False,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0, help="Exit 3 where the upper end of the interval is above.")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option("--max-hours", min=0, help="Exit 3 where the upper end of the interval is above.")
    ] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Predict hours, dollars, errors and memory of `featurize` with the same options, from a sample of its media."""

    def action() -> Ending:
        from jobs.plan import show_plan
        from jobs.work import Selection

        chosen = {"featurizers": featurizer} if featurizer else None
        common = _common(lake, conf, set_, run_id, json_, debug, featurize=chosen)
        selection = Selection(
            full=full, retry_errors=retry_errors, limit=limit, where=where, sample=sample, golden=golden
        )
        return show_plan(common, selection, max_usd=max_usd, max_hours=max_hours)

    conclude("plan", debug, json_, action)


@app.command()
def check(
    discard: Annotated[str | None, typer.Option(help="Remove the rows of this rejected or failed run.")] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Judge what no accepted run covers yet; accepting it publishes it."""

    def action() -> Ending:
        from jobs.run import discard_run, run_jobs

        common = _common(lake, conf, set_, run_id, json_, debug)
        return run_jobs(common, ["check"]) if discard is None else discard_run(common, discard)

    conclude("check", debug, json_, action)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="YAML with the sources and featurizers.")],
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Crawl, featurize, check and, where golden sets are named, evaluate, as one pipeline."""

    def action() -> Ending:
        from jobs.run import pipeline, run_jobs

        common = _common(lake, [*(conf or []), file], set_, run_id, json_, debug)
        return run_jobs(common, pipeline(common.config))

    conclude("run", debug, json_, action)


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Loopback port of the sample site.")] = 8642,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Run the whole pipeline on the sample media, into ./lake."""

    def action() -> Ending:
        from jobs.demo import demo_overrides, prepared_sample, serve
        from jobs.run import pipeline, run_jobs

        sample = prepared_sample()
        with serve(sample, port=port) as base_url:
            common = _common(lake, conf, set_, run_id, json_, debug, **demo_overrides(sample, base_url))
            return run_jobs(common, pipeline(common.config))

    conclude("demo", debug, json_, action)


golden_app = typer.Typer(help="Labelled items that quality is measured on.", no_args_is_help=True)
app.add_typer(golden_app, name="golden")


@golden_app.command("add")
def golden_add(
    name: Annotated[str, typer.Argument(help="Name of the set; adding it again makes its next version.")],
    kind: Annotated[str, typer.Option(help="boxes, labels, queries, copies or text.")],
    labels: Annotated[Path, typer.Option(help="COCO JSON (boxes), CSV, JSON lines (text), or folders by class.")],
    pictures: Annotated[
        str | None, typer.Option(help="Folder, crawled first, or URL, that file names are relative to.")
    ] = None,
    what: Annotated[str, typer.Option(help="For the data card: what it is.")] = "",
    licence: Annotated[str, typer.Option(help="For the data card.")] = "",
    bias: Annotated[str, typer.Option(help="For the data card: what is known to be unlike the rest.")] = "",
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write a version of a golden set; pictures that the lake lacks are crawled first."""

    def action() -> Ending:
        from jobs.golden import overrides
        from jobs.run import run_jobs

        card = {key: text for key, text in (("what", what), ("licence", licence), ("bias", bias)) if text}
        chosen = overrides(name, kind, labels, pictures, card)
        jobs = ["crawl", "golden"] if "crawl" in chosen else ["golden"]
        return run_jobs(_common(lake, conf, set_, run_id, json_, debug, **chosen), jobs)

    conclude("golden add", debug, json_, action)


@golden_app.command("list")
def golden_list(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show the golden sets of the lake."""

    def action() -> Ending:
        from jobs.golden import show_golden

        return show_golden(_common(lake, conf, set_, None, json_, debug))

    conclude("golden list", debug, json_, action)


@app.command()
def evaluate(
    golden: Annotated[
        list[str] | None, typer.Option("--golden", help="Golden set, or set@version; repeatable.", metavar="NAME")
    ] = None,
    featurizer: FeaturizerOption = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Measure featurizers on golden sets, item by item, into evaluations."""

    def action() -> Ending:
        from jobs.run import run_jobs

        chosen: dict[str, Any] = {"featurize": {"featurizers": featurizer} if featurizer else None}
        chosen["evaluate"] = {"golden": golden} if golden else None
        return run_jobs(_common(lake, conf, set_, run_id, json_, debug, **chosen), ["evaluate"])

    conclude("evaluate", debug, json_, action)


new_app = typer.Typer(help="Files that something new starts from.", no_args_is_help=True)
app.add_typer(new_app, name="new")


@new_app.command("featurizer")
def new_featurizer(
    name: Annotated[str, typer.Argument(help="KIND_MODEL, where KIND is concept, object or entity.")],
    variant: Annotated[str, typer.Option(help="Name of its first variant.")] = "base",
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write a working featurizer, its golden vectors and an experiment into the checkout in this folder."""

    def action() -> Ending:
        from jobs.new import new_featurizer

        return new_featurizer(name, variant=variant, root=Path.cwd())

    conclude("new featurizer", debug, json_, action)


@app.command()
def experiment(
    file: Annotated[Path, typer.Argument(help="YAML with the variants, the golden set and what is to be decided.")],
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Featurize, evaluate, time and compare variants; the verdict stands on a page."""

    def action() -> Ending:
        from jobs.experiment import read_experiment, run_experiment

        common = _common(lake, conf, set_, run_id, json_, debug)
        return run_experiment(common, read_experiment(file), f"lakelens experiment {file}")

    conclude("experiment", debug, json_, action)


@app.command()
def compare(
    baseline: Annotated[str, typer.Option(help="Spec id.", metavar="ID")],
    candidate: Annotated[str, typer.Option(help="Spec id.", metavar="ID")],
    golden: Annotated[str, typer.Option(help="Golden set, or set@version.", metavar="NAME")],
    metric: Annotated[list[str], typer.Option(help="What is compared; repeatable, the first decides.")],
    margin: Annotated[float, typer.Option(help="The largest difference that does not matter.", min=0)] = 0.02,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Compare two featurizers on a golden set; an experiment of two variants without a file."""

    def action() -> Ending:
        from jobs.experiment import run_experiment, two_featurizers

        common = _common(lake, conf, set_, run_id, json_, debug)
        asked = two_featurizers(baseline, candidate, golden=golden, metrics=metric, margin=margin)
        chosen = " ".join(f"--metric {name}" for name in metric)
        command = f"lakelens compare --baseline {baseline} --candidate {candidate} --golden {golden} {chosen}"
        return run_experiment(common, asked, f"{command} --margin {margin:g}")

    conclude("compare", debug, json_, action)


@app.command()
def tables(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show what the lake holds: tables, featurizers, recent runs."""

    def action() -> Ending:
        from jobs.tables import show_tables

        return show_tables(_common(lake, conf, set_, None, json_, debug))

    conclude("tables", debug, json_, action)


def main() -> None:
    """Entry point of the console command."""
    app()
