"""SQL that gives the records of a copied log transaction ids of their new server.

Snapshots of the old server mean nothing on the new one. So records that the same readers have
seen get one id of a transaction that ended long ago, and each reader gets a snapshot that shows
the ids of what it has seen. A reader is a consumer, by its name, or an archive, by its id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.store.cursor import Cursor
from oplog.store.seen import EVERYTHING, VISIBLE

FIRST_ID = 3
"""The lowest id of a transaction that ended before all others: see `RESTORED_ID`."""
END_OF_IDS = 100
"""Below it no server gives an id to anything but its own creation."""
_LOCAL = f"(r.transaction_id >= '{END_OF_IDS}'::xid8 AND r.xmin = r.transaction_id::xid)"
"""Whether record `r` was written here by the very transaction that it names: a copied row has the
xmin of the transaction that copied it, and a row in copied files keeps its own."""


_LOW_ID = "(r.transaction_id::text::numeric %% 4294967296)"


Reader: TypeAlias = str | UUID
"""A consumer's name, or an archive's id."""


class Evidence(NamedTuple):
    """Traces of a copy, or of files that were taken over as they are.

    `row` is the xmin of the log's identity. `copied`: a record names a transaction that is later
    than the one which wrote its row. `early`: a record was written here by its own transaction,
    before the log's identity was.
    """

    row: str
    copied: bool
    early: bool


class Renumbering(NamedTuple):
    """How many entries' records have another id now, and each reader's new snapshot."""

    entries: int
    snapshots: Mapping[Reader, str]


class IncarnationStore:
    """The log in one schema, being made the log of the database that it was copied into."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        # In a statement a percent sign would be taken for a parameter.
        self._s = quote_for_driver(schema)

    def find_evidence(self, connection: Connection) -> Evidence:
        """What rows say of how they came here."""
        found = connection.exec_driver_sql(
            f"SELECT l.row, EXISTS (SELECT FROM {self._s}.oplog_record r WHERE NOT {_LOCAL} "
            f"AND r.transaction_id >= '{END_OF_IDS}'::xid8 "
            f"AND {_LOW_ID} > r.xmin::text::bigint), "
            f"EXISTS (SELECT FROM {self._s}.oplog_record r WHERE {_LOCAL} "
            f"AND {_LOW_ID} <= l.row::bigint) "
            f"FROM (SELECT xmin::text AS row FROM {self._s}.oplog_log LIMIT 1) l"
        )
        return Evidence(*found.one())

    def list_cursors(self, connection: Connection) -> dict[str, Cursor]:
        """Saved cursors of consumers, by their names."""
        rows = connection.exec_driver_sql(
            f"SELECT name, cursor::text FROM {self._s}.oplog_consumer ORDER BY name"
        )
        return {row[0]: Cursor.from_json(row[1]) for row in rows}

    def renumber(self, connection: Connection, cursors: Mapping[Reader, Cursor]) -> Renumbering:
        """Give all records ids of transactions that ended long ago, and each cursor a snapshot.

        The caller keeps readers and writers out. Records written on this server count as unseen
        by every cursor; for others the cursor's old snapshot says whether they were seen.
        """
        names = list(cursors)
        conditions, values = [], list[object]()
        for name in names:
            cursor = cursors[name]
            condition = VISIBLE
            values.append(cursor.snapshot or EVERYTHING)
            if cursor.target is not None:
                condition = f"({VISIBLE} OR ({VISIBLE} AND r.position <= %s))"
                values += [cursor.target, cursor.after]
            conditions.append(f"(NOT {_LOCAL} AND {condition})")
        seen = f"ARRAY[{', '.join(conditions)}]::boolean[]"
        groups: list[list[bool]] = sorted(
            connection.exec_driver_sql(
                f"SELECT DISTINCT {seen} FROM {self._s}.oplog_record r", tuple(values)
            ).scalars(),
            reverse=True,
        )
        if len(groups) > END_OF_IDS - FIRST_ID:
            raise ConfigurationError(
                f"{len(names)} consumers are at too many different places to keep them all",
                hint="delete the rows in oplog_consumer of consumers that are given up",
            )
        entries = 0
        if groups:
            ids = ", ".join(
                f"(%s::boolean[], '{number}'::xid8)"
                for number in range(FIRST_ID, FIRST_ID + len(groups))
            )
            entries = connection.exec_driver_sql(
                f"WITH changed AS (UPDATE {self._s}.oplog_record r SET transaction_id = g.id "
                f"FROM (VALUES {ids}) g(seen, id) "
                f"WHERE {seen} = g.seen AND r.transaction_id <> g.id "
                "RETURNING pg_catalog.cardinality(r.aggregates) AS entries) "
                "SELECT coalesce(sum(entries), 0)::bigint FROM changed",
                (*groups, *values),
            ).scalar_one()
        return Renumbering(
            entries,
            {name: _write_snapshot([g[place] for g in groups]) for place, name in enumerate(names)},
        )

    def write_cursor(self, connection: Connection, name: str, cursor: Cursor) -> None:
        """Replace a consumer's cursor; the position for people to read stays."""
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_consumer SET cursor = %s::jsonb WHERE name = %s",
            (cursor.to_json(), name),
        )


def _write_snapshot(seen: Sequence[bool]) -> str:
    """The snapshot that shows the groups of records that were seen, and nothing else."""
    end = FIRST_ID + max(len(seen), 1)
    missing = [FIRST_ID + place for place, one in enumerate(seen) if not one]
    return f"{missing[0] if missing else end}:{end}:{','.join(map(str, missing))}"


def rebase_cursor(
    cursor: Cursor, *, system_identifier: str, timeline: int, snapshot: str
) -> Cursor:
    """The cursor on this server and timeline, at `snapshot`.

    `snapshot` shows the renumbered records that were consumed, also those of a batch that was
    consumed in part: so `target` and `after` are cleared.
    """
    return replace(
        cursor,
        system_identifier=system_identifier,
        timeline=timeline,
        snapshot=snapshot,
        target=None,
        after=0,
    )
