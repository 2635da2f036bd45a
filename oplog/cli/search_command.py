"""`oplog search`."""

from __future__ import annotations

from typing import Any

import click

from oplog.cli.argument import PLACE, parse_metadata
from oplog.cli.invocation import Invocation, say
from oplog.cli.option import (
    full_option,
    pass_invocation,
    reach_option,
    redact_option,
    standard_options,
)
from oplog.cli.presentation import show_count, show_found
from oplog.cli.progress import show_scan
from oplog.facade import Oplog
from oplog.facade.search_part import SCAN_LIMIT
from oplog.search.question import ANY

_NULL = "NULL"


@click.command()
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.option("--column", metavar="NAME", help="Find changes that set this column.")
@click.option("--to", metavar="TEXT", help="Find changes that set the column to this value.")
@click.option("--before", metavar="TEXT", help="Find changes that replaced this value.")
@click.option("--null", is_flag=True, help="Read NULL in --to and --before as NULL, not as text.")
@click.option("--actor", metavar="NAME", help="Find changes by this actor.")
@click.option(
    "--kind", type=click.Choice(["create", "update", "delete"]), help="Find changes of this kind."
)
@click.option("--aggregate", metavar="NAME", help="Search only entries of this aggregate.")
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Search only transactions with this metadata; may be repeated, all must match.",
)
@click.option("--after", type=PLACE, help="Search only entries after this place.")
@click.option("--through", type=PLACE, help="Search only entries up to this place.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show this many changes.",
)
@click.option(
    "--scan-limit",
    type=click.IntRange(min=0),
    default=SCAN_LIMIT,
    show_default=True,
    help="Open no more records than this; 0 opens as many as it takes.",
)
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier search ended.")
@redact_option
@full_option
@reach_option
@standard_options
@pass_invocation
def search(invocation: Invocation, /, **given: Any) -> None:
    """Find changes by what they did, newest first.

    TYPE is the name of a logged type. TEXT is a value as Postgres reads it.
    """
    log, archive = invocation.load_log(), invocation.reach_archive(given["reach"])
    places: dict[str, Any] = {key: given[key] for key in ("after", "through")}
    with invocation.connect() as connection, show_scan("searching") as progress:
        values = {key: _read(log, connection, key, given=given) for key in ("to", "before")}
        page = log.search(
            connection,
            type=given["type_name"],
            column=given["column"],
            actor=given["actor"],
            kind=given["kind"],
            aggregate=given["aggregate"],
            metadata=parse_metadata(given["pairs"]),
            limit=given["limit"],
            scan_limit=given["scan_limit"] or None,
            cursor=given["cursor"],
            archive=archive,
            progress=progress,
            **places,
            **values,
        )
    look = invocation.look(redact=given["redact"], full=given["full"])
    invocation.emit(
        lambda: page.to_json(redact=look.redact),
        lambda: (line for change in page for line in show_found(change, look=look)),
        paged=True,
    )
    if not page.complete:
        say(f"{show_count(page.scanned, 'record')} opened, down to position {page.reached}")
    if page.cursor is not None:
        say(f"there is more: --cursor {page.cursor}")
    elif not page:
        say("nothing found")


def _read(log: Oplog, connection: Any, key: str, *, given: dict[str, Any]) -> Any:
    text, column, model = given[key], given["column"], given["type_name"]
    if text is None:
        return ANY
    if text == _NULL and given["null"]:
        return None
    if column is None or model is None:
        raise click.UsageError(f"--{key} needs TYPE and --column")
    return log.read_value(connection, model, column=column, text=text)
