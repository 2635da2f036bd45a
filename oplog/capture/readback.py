"""Asking the database what it stored.

Reads rows by key inside the writing transaction, as Postgres' own text. Must not know the
log's tables. The hard thing is to get text that does not depend on the session's settings:
they are set for the rest of the transaction, which is over but for its COMMIT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from oplog.binding import BoundType
from oplog.capture.effect import NetRow
from oplog.errors import CaptureMismatchError
from oplog.tables import quote, quote_literal
from oplog.value import TEXT_SETTINGS, Wire

_SETTINGS = "SELECT " + ", ".join(
    f"pg_catalog.set_config({quote_literal(name)}, {quote_literal(value)}, true)"
    for name, value in TEXT_SETTINGS.items()
)


def complete_rows(connection: Connection, rows: Sequence[NetRow], *, strict: bool) -> None:
    """Fill in what only the database knows; with `strict`, compare everything else too.

    A row that is not there any more (a cascade or a trigger removed it) becomes deleted.
    Raises `CaptureMismatchError` naming table, key, column and both values.
    """
    wanted: dict[BoundType, list[NetRow]] = {}
    for row in rows:
        if not row.exists:
            continue
        if row.bound.live.rewrites_rows or _may_regroup(row):
            row.unknown.update(row.bound.shape.names)
        if row.unknown or strict or _lacks_group(row):
            wanted.setdefault(row.bound, []).append(row)
    if wanted:
        connection.exec_driver_sql(_SETTINGS)
    for bound, group in wanted.items():
        _complete(connection, bound, group, strict=strict)


def _may_regroup(row: NetRow) -> bool:
    # A row that leaves its aggregate is logged whole in the one it joins.
    if row.complete or not row.bound.regroups:
        return False
    return any(name in row.values or name in row.unknown for name in row.bound.template.columns)


def _lacks_group(row: NetRow) -> bool:
    if row.complete or not row.bound.regroups:
        return False
    return row.group is None


def _complete(
    connection: Connection, bound: BoundType, rows: Sequence[NetRow], *, strict: bool
) -> None:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(bound.shape.names if strict else row.unknown))
    names.update(dict.fromkeys(bound.template.columns))
    found = read_rows(connection, bound, [row.key for row in rows], columns=tuple(names))
    for row, stored in zip(rows, found, strict=True):
        if stored is None:
            row.exists = False
            row.values.clear()
            continue
        if strict:
            _compare(row, stored)
        for name in row.unknown:
            row.values[name] = stored[name]
        if row.group is None and not row.complete:
            row.group = {name: stored[name] for name in bound.template.columns}


def _compare(row: NetRow, stored: Mapping[str, Wire | None]) -> None:
    for name, value in row.values.items():
        # repr tells -0.0 from 0.0 and finds NaN equal to itself.
        if name not in row.unknown and repr(stored[name]) != repr(value):
            raise CaptureMismatchError(
                f"{row.bound.live.qualified} key {row.key!r} column {name}: about to log "
                f"{value!r}, the database stored {stored[name]!r}",
                hint="a trigger, rule or type of the database changes what is written; "
                "report this with the column's definition",
            )


def read_rows(
    connection: Connection,
    bound: BoundType,
    keys: Sequence[Sequence[Wire | None]],
    *,
    columns: Sequence[str],
    lock: str = "",
) -> list[dict[str, Wire | None] | None]:
    """The named columns of each row in wire values, None where there is no such row."""
    shape = bound.shape
    codecs = shape.codecs
    selected = ", ".join(f"t.{quote(name)}::text" for name in columns)
    arrays, joined = [], []
    parameters: list[Any] = []
    for place, column in enumerate(shape.key_columns):
        arrays.append("pg_catalog.unnest(%s::text[])")
        joined.append(f"t.{quote(column.name)} = k.k{place}::{column.pg_type}")
        to_text = codecs[column.name].to_text
        parameters.append([None if k[place] is None else to_text(k[place]) for k in keys])
    aliases = ", ".join(f"k{place}" for place in range(len(arrays)))
    rows = connection.exec_driver_sql(
        f"SELECT k.n{', ' if selected else ''}{selected} FROM ROWS FROM ({', '.join(arrays)}) "
        f"WITH ORDINALITY AS k({aliases}, n) JOIN {bound.live.qualified} t "
        f"ON {' AND '.join(joined)}{lock}",
        tuple(parameters),
    )
    found: list[dict[str, Wire | None] | None] = [None] * len(keys)
    parsers = [codecs[name].from_text for name in columns]
    for row in rows:
        found[row[0] - 1] = {
            name: None if text is None else parse(text)
            for name, parse, text in zip(columns, parsers, row[1:], strict=True)
        }
    return found
