"""SQL of schema changes: what the database says of them, and what it keeps of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy.engine import Connection

from oplog.payload.schema_change import SchemaChange
from oplog.payload.shape import Shape
from oplog.postgres.quoting import quote, quote_for_driver


class TypeStore:
    """Schema changes of the tables of one log."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._s = quote_for_driver(schema)

    def describe(
        self, connection: Connection, shapes: Sequence[tuple[Shape, int]]
    ) -> list[SchemaChange]:
        """What became of each type's rows if the table with this oid has this shape now.

        Worked out by the database, and not stored.
        """
        if not shapes:
            return []
        rows = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_describe_change(g.type_name, g.shape::jsonb, "
            "g.table_oid::oid)::text FROM ROWS FROM (pg_catalog.unnest(%s::text[]), "
            "pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::bigint[])) "
            "WITH ORDINALITY AS g(type_name, shape, table_oid, n) ORDER BY g.n",
            (
                [shape.type_name for shape, _ in shapes],
                [json.dumps(shape.to_json()) for shape, _ in shapes],
                [oid for _, oid in shapes],
            ),
        )
        return [SchemaChange.from_json(json.loads(text)) for text in rows.scalars()]

    def may_describe(self, connection: Connection) -> bool:
        """Whether the role may ask what became of rows."""
        found = connection.exec_driver_sql(
            "SELECT pg_catalog.has_function_privilege(%s, 'EXECUTE')",
            (f"{quote(self._schema)}.oplog_describe_change(text, jsonb, oid)",),
        )
        return bool(found.scalar_one())

    def keep_state(self, connection: Connection, type_name: str, *, table: int) -> None:
        """Compare the next change with what the table with this oid is now; for the owner."""
        connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_keep_state(%s, %s::bigint::oid)", (type_name, table)
        )

    def list_unmarked(self, connection: Connection) -> dict[str, int]:
        """Types whose newest revision the log does not say to be there yet, with the revision."""
        rows = connection.exec_driver_sql(
            "SELECT t.type_name, t.revision FROM (SELECT k.type_name, max(k.revision) AS revision "
            f"FROM {self._s}.oplog_type k GROUP BY 1 HAVING count(*) > 1) t "
            f"WHERE NOT {self._s}.oplog_is_marked(t.type_name, t.revision)"
        )
        return {str(name): int(revision) for name, revision in rows}

    def mark(self, connection: Connection, shape: Shape, *, reason: str = "") -> bool:
        """Say in the log that from here on the table has this shape; False if that was said."""
        done = connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_mark_change(%s, %s, %s)",
            (shape.type_name, shape.revision, reason),
        )
        return bool(done.scalar_one())

    def retire_missing(self, connection: Connection) -> list[str]:
        """Retire the types whose tables this database had and has no more; their names."""
        call = f"SELECT {self._s}.oplog_retire_missing()"
        return [str(name) for name in connection.exec_driver_sql(call).scalar_one()]

    def list_retired(self, connection: Connection) -> frozenset[str]:
        """Types that were retired when their newest revision was the newest."""
        rows = connection.exec_driver_sql(
            "SELECT t.type_name FROM (SELECT k.type_name, max(k.revision) AS revision "
            f"FROM {self._s}.oplog_type k GROUP BY 1) t "
            f"WHERE {self._s}.oplog_is_retired(t.type_name, t.revision)"
        )
        return frozenset(rows.scalars())

    def renew_state(self, connection: Connection, type_name: str) -> None:
        """Compare the next change with what the table is now, if nothing became of its rows."""
        connection.exec_driver_sql(f"SELECT {self._s}.oplog_renew_state(%s)", (type_name,))

    def replace(self, connection: Connection, shape: Shape) -> None:
        """Store a revision that begins with all rows logged anew; for the owner of the log."""
        connection.exec_driver_sql(
            f"SELECT {self._s}.oplog_replace_type(%s, %s, %s::jsonb, %b)",
            (shape.type_name, shape.revision, json.dumps(shape.to_json()), shape.descriptor),
        )

    def read_epoch(self, connection: Connection) -> int:
        """How many schema changes there were: a writer that knows fewer is refused."""
        found = connection.exec_driver_sql(f"SELECT epoch FROM {self._s}.oplog_epoch").scalar()
        return int(found or 0)
