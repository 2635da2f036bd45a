"""Moves the sequences of restored tables on, so that the next row gets an unused key.

The log does not record sequences. The highest value in a column is a lower bound of what its
sequence gave out; a snapshot may record a higher one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    double_percent,
    quote,
)
from oplog.postgres.sequence_columns import SEQUENCE_COLUMNS
from oplog.postgres.work import Driver


class _SequenceColumn(NamedTuple):
    """A sequence and a column that takes values from it, as identity, serial or by default."""

    sequence: str
    table: str
    column: str


_LIST_COLUMNS = f"""
SELECT DISTINCT pg_catalog.quote_ident(sn.nspname) || '.' || pg_catalog.quote_ident(s.relname),
  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), a.attname::text
FROM ({SEQUENCE_COLUMNS}) u
JOIN pg_catalog.pg_class s ON s.oid = u.sequence AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = u.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.number
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typcategory = 'N' AND t.typname <> 'money'
WHERE c.oid = ANY(%s::bigint[]::oid[]) ORDER BY 1, 2, 3"""

_MOVE = """
SELECT pg_catalog.setval(%s::regclass, w.value)
FROM (SELECT %s::bigint AS value) w, pg_catalog.pg_sequence q,
  (SELECT last_value, is_called FROM {name}) now
WHERE q.seqrelid = %s::regclass AND w.value BETWEEN q.seqmin AND q.seqmax
  AND CASE WHEN now.last_value = w.value THEN NOT now.is_called
    ELSE (w.value > now.last_value) = (q.seqincrement > 0) END"""


def move_sequences(driver: Driver, oids: Sequence[int], *, recorded: Mapping[str, int]) -> None:
    """Advance the sequences of tables `oids`, and `recorded` ones, to the furthest value known.

    `recorded` are a snapshot's last values by qualified name. No sequence is moved back, in the
    direction of its increment: a key is not issued twice.
    """
    connection = driver.connection
    reached: dict[str, list[int]] = {}
    for fed in _list_sequence_columns(connection, oids):
        found = driver.execute(
            f"SELECT ceil(max(v))::bigint, floor(min(v))::bigint "
            f"FROM (SELECT {quote(fed.column)} AS v FROM {fed.table}) c "
            f"WHERE v BETWEEN {-(2**63)} AND {2**63 - 1}"
        ).fetchone()
        reached.setdefault(fed.sequence, []).extend(v for v in found or () if v is not None)
    for name, value in recorded.items():
        reached.setdefault(name, []).append(value)
    for name, values in reached.items():
        for value in values:
            _move(connection, name, value)


def _move(connection: Connection, name: str, value: int) -> None:
    known: Any = connection.exec_driver_sql(
        "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (name,)
    ).scalar_one()
    if known:
        statement = _MOVE.format(name=double_percent(name))
        connection.exec_driver_sql(statement, (name, value, name))


def _list_sequence_columns(connection: Connection, oids: Sequence[int]) -> list[_SequenceColumn]:
    return [
        _SequenceColumn(*row) for row in connection.exec_driver_sql(_LIST_COLUMNS, (list(oids),))
    ]


def advance_sequences(
    connection: Connection, extremes: Mapping[tuple[int, str], tuple[int, int]]
) -> None:
    """Advance sequences to values just written: `extremes` by the table's oid and the column."""
    for oid in sorted({oid for oid, _ in extremes}):
        for fed in _list_sequence_columns(connection, [oid]):
            for value in extremes.get((oid, fed.column), ()):
                _move(connection, fed.sequence, value)
