"""The `lakelens` commands: options in, one job or pipeline run, one last line and an exit code out. Knows no table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.command import (
    ConfOption,
    DebugOption,
    Ending,
    FeaturizerOption,
    FullOption,
    GoldenOption,
    JsonOption,
    LakeOption,
    LimitOption,
    RetryOption,
    RunIdOption,
    SampleOption,
    SetOption,
    WhereOption,
    command_line,
    common_of,
    conclude,
)
from jobs.config import ConfigError
from jobs.lake_commands import COMMANDS, takedown_app

app = typer.Typer(
    name="lakelens",
    help="Crawl pictures and videos into Delta tables, featurize them, check and measure every run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    retry_error: Annotated[
        list[str] | None,
        typer.Option("--retry-error", help="Final error whose documents to try again, such as not_media."),
    ] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Fetch the configured sources into fetches, documents and media."""

    def action() -> Ending:
        from jobs.run import run_jobs

        retried = {"retry_errors": retry_error} if retry_error else None
        return run_jobs(common_of(lake, conf, set_, run_id, json_, debug, crawl=retried), ["crawl"])

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
        common = common_of(lake, conf, set_, run_id, json_, debug, featurize=chosen)
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
        common = common_of(lake, conf, set_, run_id, json_, debug, featurize=chosen)
        selection = Selection(
            full=full, retry_errors=retry_errors, limit=limit, where=where, sample=sample, golden=golden
        )
        return show_plan(common, selection, max_usd=max_usd, max_hours=max_hours)

    conclude("plan", debug, json_, action)


@app.command()
def check(
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Judge this run alone; repeatable.", metavar="RUN")
    ] = None,
    discard: Annotated[str | None, typer.Option(help="Remove the rows of this rejected or failed run.")] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Judge what no accepted run covers yet; accepting it publishes it."""

    def action() -> Ending:
        from jobs.run import discard_run, run_jobs

        common = common_of(lake, conf, set_, run_id, json_, debug)
        if discard is None:
            return run_jobs(common, ["check"], judged=run or ())
        if run:
            raise ConfigError(f"--run {run[0]} and --discard {discard} are not allowed together")
        return discard_run(common, discard)

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

        common = common_of(lake, [*(conf or []), file], set_, run_id, json_, debug)
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
            common = common_of(lake, conf, set_, run_id, json_, debug, **demo_overrides(sample, base_url))
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
        return run_jobs(common_of(lake, conf, set_, run_id, json_, debug, **chosen), jobs)

    conclude("golden add", debug, json_, action)


@golden_app.command("list")
def golden_list(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show the golden sets of the lake."""

    def action() -> Ending:
        from jobs.golden import show_golden

        return show_golden(common_of(lake, conf, set_, None, json_, debug))

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
        return run_jobs(common_of(lake, conf, set_, run_id, json_, debug, **chosen), ["evaluate"])

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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run the baseline alone, and say what differences the items can show.")
    ] = False,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Featurize, evaluate, time and compare variants; the verdict stands on a page."""

    def action() -> Ending:
        from jobs.experiment import run_experiment
        from jobs.experiment_file import read_experiment

        common = common_of(lake, conf, set_, run_id, json_, debug)
        command = command_line("experiment", str(file), lake=lake, conf=conf, set_=set_)
        return run_experiment(common, read_experiment(file), command, is_dry=dry_run)

    conclude("experiment", debug, json_, action)


@app.command()
def compare(
    baseline: Annotated[str, typer.Option(help="Spec id, or id#first digits of its fingerprint.", metavar="ID")],
    candidate: Annotated[str, typer.Option(help="Spec id, or id#first digits of its fingerprint.", metavar="ID")],
    golden: Annotated[str, typer.Option(help="Golden set, or set@version.", metavar="NAME")],
    metric: Annotated[list[str], typer.Option(help="What is compared; repeatable, the first decides.")],
    margin: Annotated[float, typer.Option(help="The largest difference that does not matter.", min=0)] = 0.02,
    baseline_run: Annotated[
        str | None, typer.Option(help="The run of evaluate that measured the baseline; nothing is computed.")
    ] = None,
    candidate_run: Annotated[
        str | None, typer.Option(help="The same of the candidate. Runs of different tables or items are refused.")
    ] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Compare two featurizers on a golden set; an experiment of two variants without a file."""

    def action() -> Ending:
        from jobs.experiment import run_experiment
        from jobs.experiment_file import two_featurizers

        common = common_of(lake, conf, set_, run_id, json_, debug)
        asked = two_featurizers(baseline, candidate, golden=golden, metrics=metric, margin=margin)
        claimed = [one for one in (baseline_run, candidate_run) if one is not None]
        if len(claimed) == 1:
            raise ConfigError(f"--baseline-run and --candidate-run go together, and only {claimed[0]} is named")
        options = ["--baseline", baseline, "--candidate", candidate, "--golden", golden, "--margin", f"{margin:g}"]
        options += [part for name in metric for part in ("--metric", name)]
        if claimed:
            options += ["--baseline-run", claimed[0], "--candidate-run", claimed[1]]
        command = command_line("compare", *options, lake=lake, conf=conf, set_=set_)
        return run_experiment(common, asked, command, claimed=claimed)

    conclude("compare", debug, json_, action)


@app.command()
def promote(
    featurizer: Annotated[str, typer.Argument(help="Spec id, or id#first digits of a fingerprint.", metavar="ID")],
    force: Annotated[
        str | None, typer.Option(help="Promote without an accepted comparison, for this reason.", metavar="REASON")
    ] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Let readers of its kind get this featurizer's vectors."""

    def action() -> Ending:
        from jobs.promote import promote

        return promote(common_of(lake, conf, set_, run_id, json_, debug), featurizer, force=force)

    conclude("promote", debug, json_, action)


@app.command()
def rollback(
    kind: Annotated[str, typer.Argument(help="concept, object or entity.")],
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Put the champion before the present one back."""

    def action() -> Ending:
        from jobs.promote import rollback

        return rollback(common_of(lake, conf, set_, run_id, json_, debug), kind)

    conclude("rollback", debug, json_, action)


for lake_command in COMMANDS:
    app.command()(lake_command)
app.add_typer(takedown_app, name="takedown")


def main() -> None:
    """Entry point of the console command."""
    app()
