"""Reads the next rows of a table by primary key, as COPY prints them.

A chunk ends at a number of rows or a number of bytes, whichever comes first. A single row may be
too wide for any entry; such a row is refused, with its key in the message.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from oplog.entry import MAX_PART_BYTES
from oplog.errors import EntryTooLargeError
from oplog.payload.block import order_columns
from oplog.payload.shape import Column, Shape
from oplog.postgres import driver_errors
from oplog.postgres.live_table import LiveTable
from oplog.postgres.quoting import (
    quote,
)
from oplog.postgres.work import Driver
from oplog.replay.table_plan import list_quoted, quote_literal_safely
from oplog.type_binding import BoundType
from oplog.value import read_copy_field

AIMED_BYTES: Final = 4 * 1024 * 1024
"""Aimed size of a chunk: the number of its rows follows from the width of the last chunk's."""
_ENOUGH_BYTES = 8 * 1024 * 1024
"""A chunk ends at this size, however many rows were planned for it."""
_MOST_BYTES = MAX_PART_BYTES - 64 * 1024
"""Largest size of the rows of one entry; the rest is for the name and numbers of a payload."""
SAVEPOINT: Final = "oplog_adopt"
_PRINTED_AS_TEXT = re.compile(
    r"(smallint|integer|bigint|real|double precision|numeric|text|character varying|bytea|uuid|"
    r"date|(time|timestamp)(\([0-9]\))? with(out)? time zone|jsonb?)(\([0-9, -]+\))?"
)
"""Types that COPY prints in the same way as `::text`; all others are cast to text."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a table, as COPY printed them."""

    rows: bytes
    count: int
    last: bool
    """No rows come after these."""
    key: dict[str, str] | None
    """Key of the last row, as text."""


def read_key_order(connection: Connection, bound: BoundType) -> list[str]:
    """Return the primary key's columns in the order of its index.

    The table may have them in another order.
    """
    rows = connection.exec_driver_sql(
        "SELECT a.attname::text FROM pg_catalog.pg_index i CROSS JOIN LATERAL "
        "pg_catalog.unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(n, place) "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n "
        "WHERE i.indrelid = %s::bigint::oid AND i.indisprimary AND k.place <= i.indnkeyatts "
        "ORDER BY k.place",
        (bound.live.oid,),
    )
    return list(rows.scalars())


def read_chunk(
    connection: Connection,
    bound: BoundType,
    *,
    order: Sequence[str],
    after: Mapping[str, str] | None,
    limit: int,
    columns: Collection[str] | None = None,
) -> Chunk:
    """Return the rows after the key `after`, at most `limit`; text settings must be pinned.

    `order` is the result of `read_key_order`. They have the key and `columns`, None for all that
    are logged. Raises `EntryTooLargeError`, with the key, for a
    row that no entry can hold.
    """
    driver = Driver(connection, doing="an adoption")
    # A COPY that is cut off is cancelled, which aborts the transaction without a savepoint.
    driver.execute(f"SAVEPOINT {SAVEPOINT}")
    selected = order_columns(bound.shape, columns)
    statement = _select_rows(bound, selected, order, after=after, limit=limit)
    try:
        rows = driver.copy_out(statement, enough=_ENOUGH_BYTES)
    except driver_errors.Error as cause:
        # COPY bypasses SQLAlchemy; callers still expect SQLAlchemy's exceptions.
        raise DBAPIError.instance(
            statement, None, cause, driver_errors.Error, dialect=connection.dialect
        ) from cause
    cut = len(rows) >= _ENOUGH_BYTES
    if cut:
        driver.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
    driver.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")
    start = _find_last(rows)
    if len(rows) > _MOST_BYTES:
        # The last row is very wide. It may fit into an entry of its own, so it is left for the
        # next chunk.
        if start == 0:
            raise _too_wide(bound, rows)
        del rows[start:]
        start = _find_last(rows)
    count = rows.count(b"\n")
    found = bytes(rows)
    key = _read_key(bound, found[start:]) if count else None
    return Chunk(found, count, not cut and count < limit, key)


def name_rows(live: LiveTable) -> str:
    """Return the table in SQL: its own rows, and those of its partitions."""
    return f"{'ONLY ' if live.kind == 'r' else ''}{live.qualified}"


def _select_rows(
    bound: BoundType,
    columns: Sequence[Column],
    order: Sequence[str],
    *,
    after: Mapping[str, str] | None,
    limit: int,
) -> str:
    """Return the COPY of these columns of the next rows."""
    shape = bound.shape
    selected = ", ".join(
        f"t.{quote(column.name)}{'' if _PRINTED_AS_TEXT.fullmatch(column.pg_type) else '::text'}"
        for column in columns
    )
    keys = list_quoted(order, prefix="t.")
    where = ""
    if after is not None:
        values = ", ".join(_write_literal(shape, name, after[name]) for name in order)
        where = f"WHERE ({keys}) > ({values}) "
    return (
        f"COPY (SELECT {selected} FROM {name_rows(bound.live)} t {where}ORDER BY {keys} "
        f"LIMIT {limit}) TO STDOUT"
    )


def _write_literal(shape: Shape, name: str, printed: str) -> str:
    """Return a value in SQL, in a spelling that Postgres reads: some texts it only prints."""
    codec = shape.codecs[name]
    text = codec.to_text(codec.from_text(printed))
    return f"{quote_literal_safely(text)}::{shape.by_name[name].pg_type}"


def _find_last(rows: bytearray) -> int:
    """Return the offset of the last row."""
    return rows.rfind(b"\n", 0, max(len(rows) - 1, 0)) + 1


def _read_key(bound: BoundType, row: bytes | bytearray) -> dict[str, str]:
    """Return the key of the first row in `row`, as text."""
    names = bound.shape.key_names
    fields = bytes(row).removesuffix(b"\n").split(b"\t", len(names))[: len(names)]
    texts = [read_copy_field(part.decode(errors="replace")) or "" for part in fields]
    return dict(zip(names, texts, strict=True))


def _show_row(bound: BoundType, row: bytes | bytearray) -> str:
    shown = ", ".join(f"{name}={text[:100]}" for name, text in _read_key(bound, row).items())
    return f"a row of {bound.live.schema}.{bound.live.name} ({shown})"


def _too_wide(bound: BoundType, row: bytearray) -> EntryTooLargeError:
    return EntryTooLargeError(
        f"{_show_row(bound, row)} does not fit into an entry: as text it has {len(row)} bytes, "
        f"the limit is {_MOST_BYTES}",
        hint="exclude its widest column with the reason, or store such values outside the table",
    )
