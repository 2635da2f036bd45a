"""`oplog collect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import click

from oplog.cli.argument import DURATION
from oplog.cli.exit_code import FAILED
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    archive_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_size
from oplog.upkeep.garbage import GRACE_SECONDS
from oplog.upkeep.retention import Retention


@click.command()
@click.option(
    "--keep-snapshots", type=click.IntRange(min=1), metavar="N", help="Keep the newest N snapshots."
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0, min_open=True),
    metavar="D",
    help="Keep snapshots that are at most D days old.",
)
@click.option(
    "--drop-log",
    is_flag=True,
    help="Delete the log before the oldest snapshot that is kept.",
)
@click.option(
    "--grace",
    type=DURATION,
    default=timedelta(seconds=GRACE_SECONDS),
    show_default=f"{GRACE_SECONDS / 3600:g}h",
    help="Keep objects this long for readers of an older head.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@archive_option
@single_writer_option
@standard_options
@pass_invocation
def collect(
    invocation: Invocation,
    *,
    keep_snapshots: int | None,
    keep_days: float | None,
    drop_log: bool,
    grace: timedelta,
    dry_run: bool,
) -> int:
    """Delete from the archive what nothing needs.

    Without --keep-snapshots and --keep-days all snapshots are kept, and only what was left behind
    by workers that died is deleted. The newest snapshot is always kept, and so is what a pin
    holds. Exit code 1 when the store refused to delete.
    """
    if drop_log and keep_snapshots is None and keep_days is None:
        raise click.UsageError("--drop-log needs --keep-snapshots or --keep-days")
    retention = Retention(keep_snapshots, keep_days, keep_log=not drop_log)
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.collect(
            engine,
            archive,
            retention=retention,
            grace_seconds=grace.total_seconds(),
            dry_run=dry_run,
        )
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_collect(document))
    for note in report.notes:
        say(f"note: {escape(note)}")
    if dry_run:
        say("nothing was deleted: this was a dry run")
    if report.refused:
        say(f"warning: {escape(report.refused)}")
    return FAILED if report.refused else 0


def _show_collect(document: Mapping[str, Any]) -> Iterator[str]:
    yield from map(escape, document["paths"])
    verb = "to be deleted" if document["dry_run"] else "deleted"
    snapshots = show_count(document["snapshots"], "snapshot")
    yield (
        f"{show_count(len(document['paths']), 'object')} {verb}, {show_size(document['bytes'])}; "
        f"{snapshots} not kept; the log begins at sequence {document['first_sequence']}"
    )
