"""`oplog maintain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import show_count, show_guards


@click.command()
@standard_options
@pass_invocation
def maintain(invocation: Invocation) -> None:
    """Make the partitions of the log's tables that are needed next, and tidy.

    Needs the role that owns the log. Without it a transaction of the application makes partitions,
    and `oplog sync --follow` does it too, if its role may. Tidying removes rows of locks that
    nobody holds, guards partitions of tracked tables against TRUNCATE that were made later, and
    checks rows that are older than a constraint of the log.
    """
    log = invocation.load_log()
    with invocation.open_engine() as engine:
        report = log.maintain(engine)
    document = report.to_json()
    invocation.emit(lambda: document, lambda: _show(document))


def _show(document: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{show_count(document['made'], 'table')} made; at position {document['position']}, with "
        f"{show_count(document['partitions'], 'partition')} through {document['through_position']}"
    )
    if document["locks_removed"]:
        yield f"{show_count(document['locks_removed'], 'lock')} removed that nobody held"
    yield from show_guards(document)
    for name in document["checked"]:
        yield f"checked: {name} holds for every row"
    for name in document["broken"]:
        yield f"broken: a row that is older than {name} breaks it; run oplog verify"
