"""`oplog snapshot`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import (
    accept_older_option,
    archive_option,
    pass_invocation,
    single_writer_option,
    standard_options,
)
from oplog.cli.presentation import show_count, show_size
from oplog.cli.publication import report_problems


@click.command()
@click.option(
    "--full", is_flag=True, help="Upload all rows, not only those changed since the last snapshot."
)
@archive_option
@single_writer_option
@accept_older_option
@standard_options
@pass_invocation
def snapshot(invocation: Invocation, *, full: bool) -> int:
    """Publish what is new, and the tables at exactly that point.

    Uploads the rows that changed since the last snapshot; nothing, if none did. Needs the
    current key. Writers go on; nothing else is published meanwhile.
    """
    log, archive = invocation.load_log(), invocation.open_archive()
    with invocation.open_engine() as engine:
        report = log.snapshot(engine, archive, full=full)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show_snapshot(document))
    return report_problems(report.problems)


def _show_snapshot(document: Mapping[str, Any]) -> Iterator[str]:
    rows = show_count(document["rows"], "row")
    if document["taken"]:
        yield (
            f"{rows} at sequence {document['sequence']}: {show_size(document['bytes'])} uploaded "
            f"of {show_size(document['total_bytes'])}"
        )
    else:
        yield f"nothing has changed since the snapshot at sequence {document['sequence']}"
