"""`oplog quarantine`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, reach_option, standard_options
from oplog.cli.presentation import escape, show_quarantined
from oplog.upkeep.quarantine import QuarantineReport


@click.command()
@click.argument("position", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="What is known of the record; kept in the log.")
@click.option("--lost-key", is_flag=True, help="Nobody has the key that it is sealed with.")
@reach_option
@standard_options
@pass_invocation
def quarantine(
    invocation: Invocation, *, position: int, reason: str, lost_key: bool, reach: str | None
) -> None:
    """Say in the log that the record at POSITION cannot be read.

    Readers go past it then, with a warning. Only a record that does not open, does not decode, or
    does not fit the rows before it is taken; nothing is removed. Needs the role that owns the log,
    and the keys: that a key is lost for good has to be said.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect(read_only=False, commit=True) as connection:
        report = log.quarantine(
            connection, position, reason=reason, archive=archive, lost_key=lost_key
        )
    invocation.emit(report.to_json, lambda: _show_report(report))


def _show_report(report: QuarantineReport) -> Iterator[str]:
    if report.already:
        yield "quarantined before, nothing was written"
    else:
        yield f"it cannot be read: {escape(report.error)}"
    yield from show_quarantined([report.record.to_json()])
