"""`oplog prune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import click

from oplog.cli.argument import DURATION
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import archive_option, pass_invocation, standard_options
from oplog.cli.presentation import escape, show_count


@click.command()
@click.option("--keep", type=DURATION, required=True, help="Keep records that are younger.")
@click.option(
    "--force",
    metavar="NAME",
    multiple=True,
    help="Do not wait for this consumer; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Check, and show what would be removed.")
@archive_option
@standard_options
@pass_invocation
def prune(
    invocation: Invocation, *, keep: timedelta, force: tuple[str, ...], dry_run: bool
) -> None:
    """Remove records from the database that are old and archived.

    What is in the archive is read and compared first. Interrupted, run it again. Needs no keys,
    and the role that owns the log. Afterwards tail, history, replay and verify need --archive.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.prune(engine, archive, keep=keep, dry_run=dry_run, force=force)
    document = {"dry_run": dry_run, **report.to_json()}
    invocation.emit(lambda: document, lambda: _show(document))
    if dry_run:
        say("nothing was removed: this was a dry run")


def _show(document: Mapping[str, Any]) -> Iterator[str]:
    entries = show_count(document["entries"], "entry", many="entries")
    yield f"{entries} {'to be removed' if document['dry_run'] else 'removed'}"
    if document["dropped"]:
        yield f"dropped: {', '.join(map(escape, document['dropped']))}"
    if document["through_sequence"]:
        yield (
            f"in the archive only: through sequence {document['through_sequence']}, position "
            f"{document['through_position']}"
        )
