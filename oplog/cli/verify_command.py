"""`oplog verify`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, reach_option, redact_option, standard_options
from oplog.cli.presentation import (
    escape,
    show_count,
    show_key,
    show_quarantined,
    show_value,
)
from oplog.cli.progress import show_progress
from oplog.json_value import REDACTED
from oplog.replay import Difference, VerifyReport


@click.command()
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Describe at most this many differences; all are counted.",
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
        lambda: report.to_json(redact=redact),
        lambda: _show_report(report, redact=redact),
    )
    untold = report.count - len(report.differences)
    if untold > 0:
        say(f"{show_count(untold, 'more difference')} not shown; --limit shows more")
    return 0 if report.ok else DIFFERENCES


def _show_report(report: VerifyReport, *, redact: bool) -> Iterator[str]:
    for difference in report.differences:
        yield from _show_difference(difference, redact=redact)
    rows, entries = (
        show_count(report.rows, "row"),
        show_count(report.entries, "entry", many="entries"),
    )
    read = f"{rows} from {entries} through position {report.position}"
    if report.ok:
        yield f"equal: {read}"
    else:
        yield f"DIFFERENT: {show_count(report.count, 'difference')}; the log has {read}"
    yield from show_quarantined(one.to_json() for one in report.quarantined)


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
