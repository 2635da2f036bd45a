"""`oplog replay`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from oplog.cli.argument import PLACE
from oplog.cli.invocation import Invocation
from oplog.cli.option import pass_invocation, reach_option, standard_options
from oplog.cli.presentation import escape, show_count, show_quarantined
from oplog.cli.progress import show_progress


@click.command()
@click.option(
    "--into",
    metavar="SCHEMA",
    default="replayed",
    show_default=True,
    help="Schema to make the tables in. Replaces those of an earlier replay.",
)
@click.option("--through", type=PLACE, help="Stop at this place; the default is the whole log.")
@reach_option
@standard_options
@pass_invocation
def replay(
    invocation: Invocation, *, into: str, through: int | datetime | None, reach: str | None
) -> None:
    """Rebuild every logged table from the log alone.

    The tables are made in another schema. All or nothing: it is one transaction. A time
    without a zone is UTC. The digest is the same for the same rows.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect(read_only=False, commit=True) as connection:
        with show_progress("replaying") as progress:
            report = log.replay(
                connection, into=into, through=through, progress=progress, archive=archive
            )
        document = {"into": into, **report.to_json()}
    invocation.emit(lambda: document, lambda: _show_replay(document))


def _show_replay(document: Mapping[str, Any]) -> Iterator[str]:
    rows, entries = (
        show_count(document["rows"], "row"),
        show_count(document["entries"], "entry", many="entries"),
    )
    yield f"{rows} in schema {escape(document['into'])}, rebuilt from {entries}"
    yield f"through position {document['position']}"
    yield f"digest {document['digest']}"
    yield from show_quarantined(document["quarantined"])
