"""`oplog quarantine`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from oplog.cli.actor import actor_option
from oplog.cli.argument import POSITIONS
from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, reach_option, standard_options
from oplog.cli.presentation import escape, show_quarantined
from oplog.upkeep.quarantine import QuarantineReport


@click.command()
@click.argument("positions", metavar="POSITION...", type=POSITIONS, nargs=-1, required=True)
@click.option("--reason", required=True, help="What is known of the records; kept in the log.")
@click.option("--lost-key", is_flag=True, help="Nobody has the key that they are sealed with.")
@reach_option
@actor_option
@standard_options
@pass_invocation
def quarantine(
    invocation: Invocation,
    *,
    positions: tuple[range, ...],
    reason: str,
    lost_key: bool,
    reach: str | None,
) -> None:
    """Say in the log that the records at each POSITION cannot be read: 5, or 5-9 for a range.

    Readers go past them then, with a warning. Only a record that does not open, does not decode,
    or does not fit the rows before it is taken; nothing is removed. If one is refused, none is
    quarantined. Needs the role that owns the log, and the keys: that a key is lost for good has to
    be said.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect(read_only=False, commit=True) as connection:
        reports = log.quarantine(
            connection, *positions, reason=reason, archive=archive, lost_key=lost_key
        )
    document = {"quarantined": [report.to_json() for report in reports]}
    invocation.emit(lambda: document, lambda: _show_reports(reports))


def _show_reports(reports: Sequence[QuarantineReport]) -> Iterator[str]:
    for report in reports:
        if report.already:
            yield "quarantined before, nothing was written"
        else:
            yield f"it cannot be read: {escape(report.error)}"
        yield from show_quarantined([report.record.to_json()])
