"""`oplog tail`."""

from __future__ import annotations

from datetime import datetime

import click

from oplog.cli.argument import PLACE, parse_metadata
from oplog.cli.invocation import Invocation
from oplog.cli.option import (
    full_option,
    pass_invocation,
    reach_option,
    redact_option,
    standard_options,
)
from oplog.cli.presentation import (
    show_entry,
)


@click.command()
@click.option(
    "-n",
    "--last",
    "--limit",
    "count",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Show this many of the newest entries; 0 shows all.",
)
@click.option("--aggregate", metavar="NAME", help="Show only entries of this aggregate.")
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Show only transactions with this metadata; may be repeated, all must match.",
)
@click.option("--after", type=PLACE, help="Show only entries after this place.")
@click.option("--through", type=PLACE, help="Show only entries up to this place.")
@click.option("--newest-first", is_flag=True, help="Show the newest entry first.")
@redact_option
@full_option
@reach_option
@standard_options
@pass_invocation
def tail(
    invocation: Invocation,
    *,
    count: int,
    aggregate: str | None,
    pairs: tuple[str, ...],
    after: int | datetime | None,
    through: int | datetime | None,
    newest_first: bool,
    redact: bool,
    full: bool,
    reach: str | None,
) -> None:
    """Show the last entries, oldest first unless told otherwise.

    A time without a zone is UTC. On a terminal a pager shows what is longer than a screen.
    """
    wanted = parse_metadata(pairs)
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect() as connection:
        entries = log.tail(
            connection,
            last=count or None,
            aggregate=aggregate,
            metadata=wanted,
            after=after,
            through=through,
            newest_first=newest_first,
            archive=archive,
        )
        look = invocation.look(redact=redact, full=full)
        invocation.emit(
            lambda: [entry.to_json(redact=redact) for entry in entries],
            lambda: (line for entry in entries for line in show_entry(entry, look=look)),
            paged=True,
        )
