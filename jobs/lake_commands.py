"""The `lakelens` commands that look at a lake, cut it or tidy it: options in, an ending out. Knows no table."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.command import (
    ConfOption,
    DebugOption,
    Ending,
    JsonOption,
    LakeOption,
    RunIdOption,
    SetOption,
    WhereOption,
    common_of,
    conclude,
)


def tables(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show what the lake holds: tables, featurizers, recent runs."""

    def action() -> Ending:
        from jobs.tables import show_tables

        return show_tables(common_of(lake, conf, set_, None, json_, debug))

    conclude("tables", debug, json_, action)


def sample(
    fraction: Annotated[float, typer.Option(help="Share of the documents, the same ones every time.")],
    out: Annotated[str, typer.Option(help="Root of the new lake, where nothing is yet.", metavar="URI")],
    stratify: Annotated[
        list[str] | None,
        typer.Option(help="host, media_type or error: at least one document of each value; repeatable."),
    ] = None,
    where: WhereOption = None,
    error: Annotated[
        list[str] | None,
        typer.Option(help="Only documents with this error code, in documents or features; repeatable.", metavar="CODE"),
    ] = None,
    hash_: Annotated[
        list[str] | None,
        typer.Option("--hash", help="Replace this column by digests, such as caption; repeatable.", metavar="COLUMN"),
    ] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Cut a small lake from a big one: some documents with all that belongs to them."""

    def action() -> Ending:
        from jobs.sample import Sample, show_sample

        chosen = Sample(fraction=fraction, strata=stratify or (), where=where, errors=error or (), hashed=hash_ or ())
        return show_sample(common_of(lake, conf, set_, run_id, json_, debug), chosen, out)

    conclude("sample", debug, json_, action)


def explain(
    document: Annotated[str, typer.Argument(help="doc_id, URL or media_id.", metavar="DOC_ID")],
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show every step of one document: fetched, stored, decoded, understood, published, or why not."""

    def action() -> Ending:
        from jobs.explain import show_explanation

        return show_explanation(common_of(lake, conf, set_, None, json_, debug), document)

    conclude("explain", debug, json_, action)


def maintain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")] = False,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Remove what no version, row or live run needs, and put the small files of narrow tables together."""

    def action() -> Ending:
        from jobs.maintain import show_dry_run
        from jobs.run import run_jobs

        common = common_of(lake, conf, set_, run_id, json_, debug)
        return show_dry_run(common) if dry_run else run_jobs(common, ["maintain"])

    conclude("maintain", debug, json_, action)


takedown_app = typer.Typer(help="URLs, hosts and hashes that must not come back.", no_args_is_help=True)


@takedown_app.command("add")
def takedown_add(
    url: Annotated[
        list[str] | None, typer.Option(help="A document; repeatable. URL, or absolute path of a file.", metavar="URL")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="A host and all hosts below it; repeatable.", metavar="HOST")
    ] = None,
    hash_: Annotated[
        list[str] | None, typer.Option("--hash", help="Bytes, by their SHA-256; repeatable.", metavar="HEX")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(help="Lines of one of these, with url, host or hash before it; - for standard input; repeatable."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept as evidence.")] = None,
    requested_by: Annotated[str | None, typer.Option(help="Who asked for it; kept as evidence.")] = None,
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None, run_id: RunIdOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Let URLs, hosts or bytes never be fetched or stored again; what is stored already stays."""

    def action() -> Ending:
        from jobs.takedowns import add_takedowns
        from jobs.taken_down import read_entries, said_text

        entries = read_entries({"url": url or (), "host": host or (), "hash": hash_ or ()}, file or ())
        why, who = said_text("--reason", reason), said_text("--requested-by", requested_by)
        common = common_of(lake, conf, set_, run_id, json_, debug)
        return add_takedowns(common, entries, reason=why, requested_by=who)

    conclude("takedown add", debug, json_, action)


@takedown_app.command("list")
def takedown_list(
    lake: LakeOption = None, conf: ConfOption = None, set_: SetOption = None,
    json_: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show all takedowns of the lake."""

    def action() -> Ending:
        from jobs.takedowns import show_takedowns

        return show_takedowns(common_of(lake, conf, set_, None, json_, debug))

    conclude("takedown list", debug, json_, action)


COMMANDS = (tables, sample, explain, maintain)
