"""`oplog maintain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, standard_options
from oplog.cli.presentation import show_count


@click.command()
@standard_options
@pass_invocation
def maintain(invocation: Invocation) -> None:
    """Make the partitions of the log's tables that are needed next.

    Needs the role that owns the log. Without it a transaction of the application makes them, and
    `oplog sync --follow` does it too, if its role may.
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
