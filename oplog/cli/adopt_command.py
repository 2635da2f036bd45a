"""`oplog adopt`.

Adoption commits chunk by chunk. The report tells the rows of this run from those of earlier ones,
because an interrupted run has done a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from oplog.adoption import CHUNK_ROWS, AdoptedType, AdoptionReport
from oplog.cli.actor import actor_option
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count
from oplog.cli.progress import show_progress


@click.command()
@click.argument("tables", metavar="[TABLE]...", nargs=-1)
@click.option(
    "--chunk-rows",
    type=click.IntRange(min=1),
    default=CHUNK_ROWS,
    show_default=True,
    help="Log at most this many rows under one lock.",
)
@click.option("--again", is_flag=True, help="Log every row as it is now, adopted before or not.")
@click.option("--dry-run", is_flag=True, help="Show what would be adopted, and write nothing.")
@actor_option
@standard_options
@pass_invocation
def adopt(
    invocation: Invocation,
    *,
    tables: Sequence[str],
    chunk_rows: int,
    again: bool,
    dry_run: bool,
) -> None:
    """Log the rows that existed before the log.

    TABLE is the name of a logged type or table; without one, all are adopted. The
    application may go on writing: a table is locked against writers for one chunk at a time.
    Interrupted, run it again: it goes on where it stopped, and passes over what is done.
    """
    log = invocation.load_log()
    with invocation.connect(read_only=dry_run, isolation="READ COMMITTED") as connection:
        chosen = list(tables) or None
        if dry_run:
            report = log.adopt(connection, chosen, dry_run=True)
        else:
            with show_progress("adopting") as progress:
                report = log.adopt(
                    connection, chosen, progress=progress, chunk_rows=chunk_rows, again=again
                )
    invocation.emit(
        lambda: {"dry_run": dry_run, **report.to_json()},
        lambda: _show_report(report, dry_run=dry_run),
    )
    if dry_run:
        say("nothing was written: this was a dry run")


def _show_report(report: AdoptionReport, *, dry_run: bool) -> Iterator[str]:
    for one in report.types:
        yield f"{escape(one.type_name)}: {_show_type(one, dry_run=dry_run)}"


def _show_type(one: AdoptedType, *, dry_run: bool) -> str:
    earlier = f"{show_count(one.earlier_rows, 'row')} earlier"
    if one.finished and not one.entries:
        return f"adopted before, {show_count(one.earlier_rows, 'row')}"
    if dry_run:
        more = f", {earlier}" if one.earlier_rows else ""
        if one.estimated_rows is None:
            return f"to be adopted, how many rows is unknown: it was never analysed{more}"
        return f"to be adopted, about {show_count(one.estimated_rows, 'row')} in all{more}"
    more = f" and {earlier}" if one.earlier_rows else ""
    return (
        f"{show_count(one.rows, 'row')} adopted in "
        f"{show_count(one.entries, 'entry', many='entries')}{more}"
    )
