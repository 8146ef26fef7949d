"""What all commands have in common: their options, what they end with, and its exit code. Knows no table and no job."""

from __future__ import annotations

import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.config import Config, ConfigError, load_config
from jobs.log import one_line
from jobs.progress import Progress

FINISHED, WORTH_RETRYING, BAD_USAGE, REJECTED = 0, 1, 2, 3

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
    from jobs.check import CheckRefused
    from jobs.claims import ComparisonRefused
    from jobs.evaluate import FeaturesMissing
    from jobs.explain import UnknownDocument
    from jobs.golden_labels import GoldenError
    from jobs.lake import LakeError
    from jobs.promote import PromotionRefused
    from jobs.runs import RunPublished
    from jobs.session import SessionError
    from jobs.sources import SourceError
    from jobs.stores import StoreRefused
    from jobs.taken_down import TakedownRefused

    wrong_request: tuple[type[BaseException], ...] = (
        ConfigError, UnknownFeaturizer, LakeError, SessionError, SourceError, CheckRefused, RunPublished,
        CatalogueError, WeightsError, GoldenError, FeaturesMissing, PromotionRefused,
        ComparisonRefused, StoreRefused, TakedownRefused, UnknownDocument,
        PermissionError,
    )  # fmt: skip
    if isinstance(error, WeightsUnreachable):
        return WORTH_RETRYING
    return BAD_USAGE if isinstance(error, wrong_request) else WORTH_RETRYING


def run_of(error: BaseException) -> dict[str, Any]:
    """The run id that a failed command can be given again, where it had begun a run (a note of `jobs.run`)."""
    noted = [note.removeprefix("run_id=") for note in getattr(error, "__notes__", []) if note.startswith("run_id=")]
    return {"run_id": noted[-1]} if noted else {}


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


def command_line(
    name: str, *arguments: str, lake: str | None, conf: Sequence[Path] | None, set_: Sequence[str] | None
) -> str:
    """What to type to run a command again on the same lake with the same configuration."""
    said = [*arguments, *(("--lake", lake) if lake is not None else ())]
    said += [part for file in conf or () for part in ("--conf", str(file))]
    said += [part for assignment in set_ or () for part in ("--set", assignment)]
    return shlex.join(["lakelens", name, *said])


def progress_of(common: Common) -> Progress:
    """What shows how a command goes on."""
    context = {"run_id": common.run_id} if common.config.spark.log == "json" else None
    return Progress(live=not (common.as_json or common.debug), context=context)


def common_of(
    lake: str | None,
    conf: Sequence[Path] | None,
    assignments: Sequence[str] | None,
    run_id: str | None,
    as_json: bool,
    debug: bool,
    **overrides: Any,
) -> Common:
    """The options of all commands, checked; `overrides` are laid over the configuration. Raises ConfigError."""
    from jobs.runs import new_run_name

    changed = {key: value for key, value in overrides.items() if value is not None}
    if lake is not None:
        changed["lake"] = lake
    config = load_config(conf or (), assignments or (), changed)
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"--run-id {run_id!r} is not allowed: letters, digits and . _ + - only, no dots in a row")
    return Common(config=config, run_id=run_id or new_run_name(datetime.now(UTC)), as_json=as_json, debug=debug)
