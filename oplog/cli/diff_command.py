"""`oplog diff`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice

import click

from oplog.cli.argument import PLACE
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    pass_invocation,
    reach_option,
    redact_option,
    row_limit_option,
    standard_options,
)
from oplog.cli.presentation import escape, show_count, show_key, show_value
from oplog.json_value import REDACTED, format_time
from oplog.past.row_difference import RowDifference


@click.command()
@click.argument("type_name", metavar="TYPE")
@click.argument("key_texts", metavar="[KEY]...", nargs=-1)
@click.option("--before", type=PLACE, required=True, help="Compare the table at this place...")
@click.option("--after", type=PLACE, help="...with the table at this one, instead of now.")
@row_limit_option
@redact_option
@reach_option
@standard_options
@pass_invocation
def diff(
    invocation: Invocation,
    *,
    type_name: str,
    key_texts: tuple[str, ...],
    before: int | datetime,
    after: int | datetime | None,
    limit: int,
    redact: bool,
    reach: str | None,
) -> None:
    """Show which rows differ between two moments, and which records changed them.

    Rows come by key; one that was changed and changed back is left out. KEY is the row's primary
    key, as for history. A time without a zone is UTC.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    with invocation.connect() as connection:
        if key_texts:
            key = log.read_key(connection, type_name, texts=key_texts)
            found = log.diff(
                connection, type_name, before=before, after=after, key=key, archive=archive
            )
        else:
            found = log.diff(connection, type_name, before=before, after=after, archive=archive)
        shown = islice(found, limit) if limit else found
        invocation.emit(
            lambda: {
                "type": type_name,
                "rows": [one.to_json(redact=redact) for one in shown],
                "more": next(found, None) is not None,
            },
            lambda: _show(shown, redact=redact),
        )
        if not invocation.as_json and next(found, None) is not None:
            say(f"more than {show_count(limit, 'row')}; --limit 0 shows all")


def _show(rows: Iterable[RowDifference], *, redact: bool) -> Iterator[str]:
    for one in rows:
        yield f"{one.kind}  {show_key(one.key)}"
        for name, (old, new) in one.changes.items():
            sides = [REDACTED if redact else show_value(value) for value in (old, new)]
            shown = f"{sides[0]} -> {sides[1]}"
            if one.kind != "changed":
                shown = sides[one.kind == "created"]
            yield f"  {escape(name)} = {shown}"
        for record in one.records:
            yield (
                f"  by {record.position}  {format_time(record.recorded_at)}  "
                f"{record.kind.name.lower()}"
            )
            for key, values in record.metadata.items():
                yield f"    {escape(key)}: {', '.join(escape(value) for value in values)}"
