"""Reads a snapshot's sequences and the schema's Alembic revisions.

Sequences are not transactional: the value read is at or after the snapshot's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.engine import Connection

from oplog.archive.format.manifest import NumberedColumn, SequenceState
from oplog.postgres.quoting import quote
from oplog.postgres.sequence_columns import SEQUENCE_COLUMNS

_SEQUENCES = f"""
WITH numbered AS ({SEQUENCE_COLUMNS})
SELECT DISTINCT ON (n.nspname, c.relname) n.nspname::text, c.relname::text,
  o.nspname::text, r.relname::text, a.attname::text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN numbered k ON k.sequence = c.oid
LEFT JOIN pg_catalog.pg_class r ON r.oid = k.relation
LEFT JOIN pg_catalog.pg_namespace o ON o.oid = r.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = k.relation AND a.attnum = k.number
WHERE c.relkind = 'S' AND c.relpersistence <> 't'
  AND (k.relation = ANY(%s::bigint[]::oid[])
    OR k.relation IS NULL AND n.nspname = ANY(%s::text[])
      AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT'))
ORDER BY n.nspname, c.relname, k.choice, o.nspname, r.relname, k.number
"""

_REVISIONS = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %s AND c.relkind = 'r'
  AND (pg_catalog.pg_table_is_visible(c.oid) OR n.nspname = ANY(%s::text[]))
  AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attname = 'version_num' AND NOT a.attisdropped)
"""


def read_sequences(
    connection: Connection, *, oids: Iterable[int], schemas: Iterable[str]
) -> tuple[SequenceState, ...]:
    """Sequences that feed columns of the tables `oids`, and in `schemas` those that feed none.

    One that feeds no column is left out if this role may not read it.
    """
    rows = connection.exec_driver_sql(_SEQUENCES, (list(oids), list(schemas))).all()
    if not rows:
        return ()
    selects = " UNION ALL ".join(
        f"SELECT {n}, last_value, is_called FROM {quote(row[0])}.{quote(row[1])}"
        for n, row in enumerate(rows)
    )
    states: dict[int, Any] = {
        found[0]: found
        for found in connection.exec_driver_sql(selects, execution_options={"no_parameters": True})
    }
    return tuple(
        SequenceState(
            schema=row[0],
            name=row[1],
            owner=None if row[4] is None else NumberedColumn(row[2], row[3], row[4]),
            last_value=states[n][1],
            is_called=states[n][2],
        )
        for n, row in enumerate(rows)
    )


def read_revisions(
    connection: Connection, *, version_table: str, schemas: Iterable[str]
) -> tuple[str, ...]:
    """The revisions in Alembic's tables named `version_table`, sorted; empty without a table."""
    tables = connection.exec_driver_sql(_REVISIONS, (version_table, list(schemas))).scalars().all()
    if not tables:
        return ()
    selects = " UNION ".join(f"SELECT version_num FROM {table}" for table in tables)
    found = connection.exec_driver_sql(selects, execution_options={"no_parameters": True})
    return tuple(sorted(found.scalars()))
