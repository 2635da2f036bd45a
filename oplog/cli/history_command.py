"""`oplog history`."""

from __future__ import annotations

from datetime import datetime

import click

from oplog.cli.argument import PLACE
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    full_option,
    pass_invocation,
    reach_option,
    redact_option,
    standard_options,
)
from oplog.cli.presentation import (
    show_change,
    show_key,
)
from oplog.json_value import to_json_value


@click.command()
@click.argument("type_name", metavar="TYPE")
@click.argument("key_texts", metavar="KEY...", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), help="Show this many changes.")
@click.option("--newest-first", is_flag=True, help="Show the newest change first.")
@click.option("--after", type=PLACE, help="Show only changes after this place.")
@click.option("--through", type=PLACE, help="Show only changes up to this place.")
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier page ended.")
@redact_option
@full_option
@reach_option
@standard_options
@pass_invocation
def history(
    invocation: Invocation,
    *,
    type_name: str,
    key_texts: tuple[str, ...],
    limit: int | None,
    newest_first: bool,
    after: int | datetime | None,
    through: int | datetime | None,
    cursor: str | None,
    redact: bool,
    full: bool,
    reach: str | None,
) -> None:
    """Show every change of one row, oldest first unless told otherwise.

    KEY is the row's primary key as Postgres prints it. A key of several columns is given as
    several arguments, in the key's order, or each as column=value. On a terminal a pager shows
    what is longer than a screen.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect() as connection:
        key = log.read_key(connection, type_name, texts=key_texts)
        changes = log.history(
            connection,
            type_name,
            key,
            limit=limit,
            newest_first=newest_first,
            after=after,
            through=through,
            cursor=cursor,
            archive=archive,
        )
    document = {
        "type": type_name,
        "key": to_json_value(key),
        "changes": [change.to_json(redact=redact) for change in changes],
        "cursor": changes.cursor,
    }
    look = invocation.look(redact=redact, full=full)
    invocation.emit(
        lambda: document,
        lambda: (line for change in changes for line in show_change(change, look=look)),
        paged=True,
    )
    if changes.cursor is not None:
        say(f"there is more: --cursor {changes.cursor}")
    if not changes:
        say(f"the log has nothing about {type_name} {show_key(key)}")
