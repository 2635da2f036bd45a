"""`oplog as-of`."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Literal

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
from oplog.json_value import REDACTED, to_json_value

_HIDDEN = REDACTED
_SHAPES: tuple[Literal["now", "then"], ...] = ("now", "then")


@click.command("as-of")
@click.argument("type_name", metavar="TYPE")
@click.argument("key_texts", metavar="[KEY]...", nargs=-1)
@click.option("--at", type=PLACE, required=True, help="Show rows as they were at this place.")
@click.option("--csv", "as_csv", is_flag=True, help="Print rows as CSV, with a line of names.")
@click.option("--then", is_flag=True, help="Show the columns that the table had at that place.")
@row_limit_option
@redact_option
@reach_option
@standard_options
@pass_invocation
def as_of(
    invocation: Invocation,
    *,
    type_name: str,
    key_texts: tuple[str, ...],
    at: int | datetime,
    as_csv: bool,
    then: bool,
    limit: int,
    redact: bool,
    reach: str | None,
) -> None:
    """Show a table as it was: its rows by key, or one row.

    KEY is the row's primary key, as for history. A time without a zone is UTC. An empty field of
    CSV is NULL.
    """
    if as_csv and invocation.as_json:
        raise click.UsageError("give --csv or --json, not both")
    log, archive = invocation.load_log(), invocation.reach_archive(reach)
    shape = _SHAPES[then]
    names = {one.name for one in log.catalog.find_types(type_name)[0].table.primary_key}
    if key_texts:
        with invocation.connect() as connection:
            key = log.read_key(connection, type_name, texts=key_texts)
            row = log.as_of(connection, type_name, key, at=at, shape=shape, archive=archive)
        rows = [] if row is None else [row]
        shown = iter(_hide(rows, names) if redact else rows)
        _emit_row(invocation, type_name, key, rows=list(shown), as_csv=as_csv)
        return
    with (
        invocation.open_engine() as engine,
        log.moment(engine, at=at, shape=shape, archive=archive) as moment,
    ):
        found = moment.rows(type_name, limit=limit + 1 if limit else None)
        found = _hide(found, names) if redact else found
        shown = islice(found, limit) if limit else found
        invocation.emit(
            lambda: {
                "type": type_name,
                "position": moment.position,
                "rows": [to_json_value(row) for row in shown],
                "more": next(found, None) is not None,
            },
            lambda: _show_rows(shown, as_csv=as_csv),
        )
        if not invocation.as_json and next(found, None) is not None:
            say(f"more than {show_count(limit, 'row')}; --limit 0 shows all")


def _emit_row(
    invocation: Invocation,
    type_name: str,
    key: Mapping[str, object],
    *,
    rows: Sequence[Mapping[str, Any]],
    as_csv: bool,
) -> None:
    document = {
        "type": type_name,
        "key": to_json_value(key),
        "row": to_json_value(rows[0]) if rows else None,
    }
    invocation.emit(lambda: document, lambda: _show_rows(rows, as_csv=as_csv))
    if not rows:
        say(f"there was no {type_name} {show_key(key)}, or none that the log knew")


def _hide(rows: Iterable[Mapping[str, Any]], names: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Rows in which only the key can be read."""
    for row in rows:
        yield {name: value if name in names else _HIDDEN for name, value in row.items()}


def _show_rows(rows: Iterable[Mapping[str, Any]], *, as_csv: bool) -> Iterator[str]:
    for number, row in enumerate(rows):
        if not as_csv:
            yield ", ".join(
                f"{escape(name)}={value if value is _HIDDEN else show_value(value)}"
                for name, value in row.items()
            )
            continue
        if number == 0:
            yield _print_csv(row)
        yield _print_csv([_print_field(value) for value in row.values()])


def _print_csv(fields: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def _print_field(value: object) -> str:
    held = to_json_value(value)
    if isinstance(held, bool):
        return "true" if held else "false"
    return "" if held is None else str(held)
