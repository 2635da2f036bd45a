"""Commands that turn the log back into tables: replay and verify.

Must not judge: what counts as a difference is decided by the library. The hard thing is that
a difference is an answer, not a failure, and still has to reach scripts as an exit code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from oplog.cli.argument import PLACE
from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, reach_option, redact_option, standard_options
from oplog.cli.presentation import (
    REDACTED,
    escape,
    hide,
    show_count,
    show_key,
    show_value,
    to_json_value,
)
from oplog.cli.progress import show_progress
from oplog.replay import Difference, VerifyReport


@click.command()
@click.option(
    "--into",
    metavar="SCHEMA",
    default="replayed",
    show_default=True,
    help="Where the tables are made. Those of an earlier replay there are replaced.",
)
@click.option("--through", type=PLACE, help="Up to this place; the default is the whole log.")
@reach_option
@standard_options
@pass_invocation
def replay(
    invocation: Invocation, *, into: str, through: int | datetime | None, reach: str | None
) -> None:
    """Rebuild every logged table from the log alone.

    The tables are made in another schema. All or nothing: it is one transaction. A time
    without a zone is UTC. The digest is the same for the same rows.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect(read_only=False, commit=True) as connection:
        with show_progress("replaying") as progress:
            report = log.replay(
                connection, into=into, through=through, progress=progress, archive=archive
            )
        document = {
            "into": into,
            "rows": report.rows,
            "entries": report.entries,
            "position": report.position,
            "digest": report.digest,
        }
    invocation.emit(lambda: document, lambda: _show_replay(document))


def _show_replay(document: Mapping[str, Any]) -> Iterator[str]:
    rows, entries = show_count(document["rows"], "row"), _show_entries(document["entries"])
    yield f"{rows} in schema {escape(document['into'])}, rebuilt from {entries}"
    yield f"through position {document['position']}"
    yield f"digest {document['digest']}"


@click.command()
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Differences to describe; all are counted.",
)
@redact_option
@reach_option
@standard_options
@pass_invocation
def verify(invocation: Invocation, *, limit: int, redact: bool, reach: str | None) -> int:
    """Compare every logged table with the log.

    Row by row and column by column, in one snapshot, so the application may go on writing.
    Nothing is repaired, and nothing is left behind. Exit code 3 when there are differences.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect(read_only=False) as connection, show_progress("verifying") as progress:
        report = log.verify(connection, limit=limit, progress=progress, archive=archive)
    invocation.emit(
        lambda: _report_to_json(report, redact=redact),
        lambda: _show_report(report, redact=redact),
    )
    untold = report.count - len(report.differences)
    if untold > 0:
        say(f"{show_count(untold, 'more difference')} not shown; --limit shows more")
    return 0 if report.ok else DIFFERENCES


def _report_to_json(report: VerifyReport, *, redact: bool) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "count": report.count,
        "rows": report.rows,
        "entries": report.entries,
        "position": report.position,
        "differences": [
            {
                "table": difference.table,
                "key": to_json_value(difference.key),
                "column": difference.column or None,
                "kind": difference.kind,
                "live": to_json_value(_hide_side(difference.live, redact=redact)),
                "logged": to_json_value(_hide_side(difference.logged, redact=redact)),
            }
            for difference in report.differences
        ],
    }


def _hide_side(value: Any, *, redact: bool) -> Any:
    """A value, or a whole row as a mapping; None is a NULL or a row that is not there."""
    if not redact:
        return value
    return hide(value, redact=True) if isinstance(value, Mapping) else REDACTED


def _show_report(report: VerifyReport, *, redact: bool) -> Iterator[str]:
    for difference in report.differences:
        yield from _show_difference(difference, redact=redact)
    rows, entries = show_count(report.rows, "row"), _show_entries(report.entries)
    read = f"{rows} from {entries} through position {report.position}"
    if report.ok:
        yield f"equal: {read}"
    else:
        yield f"DIFFERENT: {show_count(report.count, 'difference')}; the log has {read}"


def _show_entries(number: int) -> str:
    return show_count(number, "entry", many="entries")


def _show_difference(difference: Difference, *, redact: bool) -> Iterator[str]:
    where = f"{escape(difference.table)} {show_key(difference.key)}"
    if difference.kind == "changed":
        yield f"{where} column {escape(difference.column)}"
        sides = {"live": difference.live, "logged": difference.logged}
        for side, value in sides.items():
            yield f"  {side + ':':<8}{REDACTED if redact else show_value(value)}"
        return
    if difference.kind == "missing":
        yield f"{where}: the log has this row, the table has not"
        side, row = "logged", difference.logged
    else:
        yield f"{where}: the table has this row, the log has not"
        side, row = "live", difference.live
    for name, value in (row or {}).items():
        yield f"  {side}: {escape(name)} = {REDACTED if redact else show_value(value)}"
