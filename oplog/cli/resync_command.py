"""`oplog resync`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.exit_code import DIFFERENCES
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    accept_older_option,
    archive_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_problems


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option(
    "--anew",
    is_flag=True,
    help="Begin the archive again from the whole log of this database, where no head is left.",
)
@archive_option
@single_writer_option
@accept_older_option
@standard_options
@pass_invocation
def resync(invocation: Invocation, *, dry_run: bool, anew: bool) -> int:
    """Check the archive, and repair it from the database.

    Writes again what is missing or damaged, content first, head last; deletes nothing. Exit
    code 3 when something is left that cannot be made again. With --anew an emptied bucket is
    filled again, as another archive: needs the log's owner, and a log that was never pruned.
    """
    if anew and dry_run:
        raise click.UsageError("--anew and --dry-run do not go together")
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.resync(engine, archive, dry_run=dry_run, anew=anew)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_resync(document))
    if dry_run:
        say("nothing was written: this was a dry run")
    return 0 if report.ok else DIFFERENCES


def _show_resync(document: Mapping[str, Any]) -> Iterator[str]:
    for path in document["repaired"]:
        yield f"repaired: {escape(path)}"
    for path in document["dropped"]:
        yield f"dropped: {escape(path)}"
    if document["left"]:
        yield "left:"
        yield from show_problems(document["left"])
    found = show_count(len(document["found"]), "problem")
    yield f"{found} found, {show_count(len(document['repaired']), 'object')} repaired"
