"""`oplog restore` and `oplog recover`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from oplog.cli.argument import PLACE
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_argument,
    database_option,
    pass_invocation,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_quarantined
from oplog.cli.progress import show_progress
from oplog.cli.trust_option import expect_option
from oplog.json_value import format_instant


@click.command()
@archive_argument
@database_option
@click.option("--through", type=PLACE, help="Restore up to this place; the default is everything.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@accept_older_option
@expect_option
@standard_options
@pass_invocation
def restore(invocation: Invocation, *, through: int | datetime | None, yes: bool) -> None:
    """Bring an empty, migrated database back from ARCHIVE.

    Rows, entries, versions and sequences come in one transaction; until it commits, applications
    are refused there. A database that is not empty is left alone. Interrupted, run it again.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    head = archive.read_head()
    say(
        f"{escape(archive.url)}: log {head.log_id}, generation {head.generation}, sequence "
        f"{head.sequence}, last entry {format_instant(head.recorded_at)}"
    )
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        where = escape(invocation.name_database())
        click.confirm(f"restore into database {where}?", abort=True, err=True)
    with (
        invocation.open_engine() as engine,
        engine.connect() as connection,
        show_progress("restoring") as progress,
    ):
        report = log.restore(archive, connection, through=through, progress=progress)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_restore(document))


@click.command()
@archive_argument
@database_option
@click.option("--through", type=PLACE, help="Restore up to this place; the default is everything.")
@accept_older_option
@expect_option
@standard_options
@pass_invocation
def recover(invocation: Invocation, *, through: int | datetime | None) -> None:
    """Restore if the database is empty and there is an archive; else do nothing.

    For the start of a deployment, between the migrations and the application.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine, show_progress("restoring") as progress:
        report = log.recover(archive, engine, through=through, progress=progress)
    document = {"restored": report is not None, **(report.to_json() if report else {})}
    invocation.emit(lambda: document, lambda: _show_restore(document) if report else ())
    if report is None:
        say("nothing to restore: the database is in use, or nothing was archived")


def _show_restore(document: Mapping[str, Any]) -> Iterator[str]:
    entries = show_count(document["entries"], "entry", many="entries")
    yield f"{show_count(document['rows'], 'row')} restored, with {entries}"
    yield (
        f"through position {document['position']}, sequence {document['sequence']} of "
        f"generation {document['generation']}"
    )
    if document["snapshot"]:
        yield f"from the snapshot at sequence {document['snapshot']} and the records after it"
    else:
        yield "from the records alone"
    for why in document["passed_over"]:
        yield f"passed over: {escape(why)}"
    yield f"digest {document['digest']}"
    yield from show_quarantined(document["quarantined"])
