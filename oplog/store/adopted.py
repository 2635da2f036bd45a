"""What the log's tables say of adoption: which types, from where to where, how far it came.

Takes a connection and plain values, gives back plain values. Must not know rows or payloads.
The hard thing is that progress is saved where it can be lost (a checkpoint is no entry):
whether an adoption ended is read from the log itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.schema.guard import ADOPTION_PREFIX, RETIRED, RETIRED_REVISION
from oplog.store.checkpoints import ADOPTING_PREFIX

ADOPTED = "adopted"
"""Metadata key of every adopted chunk: its type's name."""
ADOPTED_ROWS = "adopted_rows"
"""Metadata key of the last chunk of an adoption: how many rows were adopted in all."""
ADOPTED_REVISION = "adopted_revision"
"""Metadata key of the last chunk: the revision of the type that all rows were logged in."""
_KEYS = (ADOPTED, ADOPTED_ROWS, ADOPTED_REVISION, RETIRED, RETIRED_REVISION)


class Turns(NamedTuple):
    """Positions at which what the log knew of a type was replaced as a whole.

    `began`: an adoption did. `ended` is the last entry of the newest one that ended, which
    logged every row that there was, in `revision` if that is known; `retired` the newest mark
    that the table is gone, when `retired_revision` was the type's newest.
    """

    began: bool = False
    ended: int | None = None
    revision: int | None = None
    retired: int | None = None
    retired_revision: int | None = None

    def join(self, other: Turns) -> Turns:
        """Both together."""
        last = max(self, other, key=lambda turns: turns.ended or 0)
        gone = max(self, other, key=lambda turns: turns.retired or 0)
        began = self.began or other.began
        return Turns(began, last.ended, last.revision, gone.retired, gone.retired_revision)


def read_turns(position: int, metadata: Iterable[tuple[str, str]]) -> Turns:
    """What one entry of an adoption's aggregate says, by its metadata."""
    known = {key: value for key, value in metadata if key in _KEYS}
    ended = position if ADOPTED in known and ADOPTED_ROWS in known else None
    return Turns(
        ADOPTED in known,
        ended,
        _read_number(known.get(ADOPTED_REVISION)) if ended else None,
        position if RETIRED in known else None,
        _read_number(known.get(RETIRED_REVISION)),
    )


def _read_number(text: str | None) -> int | None:
    # Metadata is anybody's to write: what is no number says nothing.
    return int(text) if text is not None and re.fullmatch("[0-9]{1,9}", text) else None


def name_adoption(type_name: str) -> str:
    """The aggregate whose entries hold the adopted rows of a type."""
    return f"{ADOPTION_PREFIX}{type_name}"


def _name_checkpoint(type_name: str) -> str:
    return f"{ADOPTING_PREFIX}{type_name}"


def join_turns(found: Iterable[tuple[str, Turns]]) -> dict[str, Turns]:
    """By type, what several entries say together."""
    joined: dict[str, Turns] = {}
    for name, turns in found:
        if turns != Turns():
            joined[name] = joined.get(name, Turns()).join(turns)
    return joined


class AdoptionStore:
    """Adoptions of the log in one schema."""

    def __init__(self, schema: str) -> None:
        self._s = quote_for_driver(schema)

    def find_adoptions(
        self,
        connection: Connection,
        types: Sequence[str],
        *,
        snapshot: str,
        through: int | None = None,
    ) -> Mapping[str, Turns]:
        """Types that were adopted or retired, and when, up to position `through`."""
        names = {name_adoption(name): name for name in types}
        # The metadata of the entries that end something, and of one that began.
        rows = connection.exec_driver_sql(
            "SELECT DISTINCT ON (e.aggregate_name, m.key) e.aggregate_name, e.id, ARRAY(SELECT "
            f"ARRAY[r.key, r.value] FROM {self._s}.oplog_metadata r "
            "WHERE r.transaction_position = e.transaction_position ORDER BY r.ordinal) "
            f"FROM {self._s}.oplog_entry e "
            f"JOIN {self._s}.oplog_metadata m ON m.transaction_position = e.transaction_position "
            "AND m.key = ANY(%s::text[]) WHERE e.aggregate_name = ANY(%s::text[]) "
            "AND (%s::bigint IS NULL OR e.id <= %s) "
            "AND pg_catalog.pg_visible_in_snapshot(e.transaction_id, %s::pg_snapshot) "
            "ORDER BY e.aggregate_name, m.key, e.id DESC",
            ([ADOPTED, ADOPTED_ROWS, RETIRED], list(names), through, through, snapshot),
        )
        return join_turns((names[row[0]], read_turns(row[1], row[2])) for row in rows)

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
