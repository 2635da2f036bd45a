"""What the log's tables say of adoption: which types, from where to where, how far it came.

Takes a connection and plain values, gives back plain values. Must not know rows or payloads.
The hard thing is that progress is saved where it can be lost (a checkpoint is no entry):
whether an adoption ended is read from the log itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from oplog.store.checkpoints import ADOPTING_PREFIX
from oplog.tables import quote_for_driver

ADOPTED = "adopted"
"""Metadata key of every adopted chunk: its type's name."""
ADOPTED_ROWS = "adopted_rows"
"""Metadata key of the last chunk of an adoption: how many rows were adopted in all."""


ADOPTION_PREFIX = "adopted/"
"""How the aggregates of adopted rows begin."""


def name_adoption(type_name: str) -> str:
    """The aggregate whose entries hold the adopted rows of a type."""
    return f"{ADOPTION_PREFIX}{type_name}"


def _name_checkpoint(type_name: str) -> str:
    return f"{ADOPTING_PREFIX}{type_name}"


class AdoptionStore:
    """Adoptions of the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._s = quote_for_driver(schema)

    def find_adoptions(
        self, connection: Connection, types: Sequence[str], *, snapshot: str
    ) -> dict[str, int | None]:
        """Types whose adoption began, with the position of its last entry if it ended."""
        names = {name_adoption(name): name for name in types}
        rows = connection.exec_driver_sql(
            "SELECT e.aggregate_name, max(e.id) FILTER (WHERE EXISTS (SELECT FROM "
            f"{self._s}.oplog_metadata r WHERE r.transaction_position = e.transaction_position "
            f"AND r.key = '{ADOPTED_ROWS}')) FROM {self._s}.oplog_entry e "
            f"JOIN {self._s}.oplog_metadata m ON m.transaction_position = e.transaction_position "
            f"AND m.key = '{ADOPTED}' "
            "WHERE e.aggregate_name = ANY(%s::text[]) "
            "AND pg_catalog.pg_visible_in_snapshot(e.transaction_id, %s::pg_snapshot) "
            "GROUP BY e.aggregate_name",
            (list(names), snapshot),
        )
        return {names[row[0]]: row[1] for row in rows}

    def lock_progress(self, connection: Connection, type_name: str) -> str | None:
        """The saved progress of a type's adoption, None if it has not begun.

        Whoever else adopts the type waits here until this transaction ends.
        """
        name = _name_checkpoint(type_name)
        connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_checkpoint (name, cursor, position) "
            "VALUES (%s, 'null'::jsonb, 0) ON CONFLICT DO NOTHING",
            (name,),
        )
        found = connection.exec_driver_sql(
            f"SELECT cursor::text FROM {self._s}.oplog_checkpoint WHERE name = %s FOR UPDATE",
            (name,),
        ).scalar_one()
        return None if found == "null" else str(found)

    def read_progress(self, connection: Connection, type_name: str) -> str | None:
        """The saved progress, without waiting for anybody."""
        found = connection.exec_driver_sql(
            f"SELECT cursor::text FROM {self._s}.oplog_checkpoint WHERE name = %s",
            (_name_checkpoint(type_name),),
        ).scalar()
        return None if found is None or found == "null" else str(found)

    def write_progress(self, connection: Connection, type_name: str, *, progress: str) -> None:
        """Save how far the adoption came, in the transaction that appended its entry."""
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_checkpoint SET cursor = %s::jsonb, "
            "updated_at = pg_catalog.clock_timestamp() WHERE name = %s",
            (progress, _name_checkpoint(type_name)),
        )
