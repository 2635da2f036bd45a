"""SQL of adoption: which types were adopted or retired, and how far a running adoption came.

Progress is kept in `oplog_adoption`, outside the log, and can be lost. So whether an adoption
ended is read from the records. A refill may be done again, which changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import (
    quote_for_driver,
)
from oplog.schema.mark_names import (
    ADOPTED,
    ADOPTION_PREFIX,
    RETIRED,
    RETIRED_REVISION,
    SCHEMA_CHANGE,
    SCHEMA_REVISION,
)

ADOPTED_ROWS = "adopted_rows"
"""Metadata key of the last chunk of an adoption: how many rows were adopted in all."""
ADOPTED_REVISION = "adopted_revision"
"""Metadata key of the last chunk: the revision of the type that all rows were logged in."""
REFILLED = "refilled"
"""Metadata key of rows that were logged again after DDL: their type's name. For people to find."""
REFILLED_REVISION = "refilled_revision"
"""Metadata key of the same records: the revision that the rows were rewritten for."""
ADOPTION, REFILL = "adoption", "refill"
"""Kinds of work whose progress is kept for a type."""
_KEYS = (
    ADOPTED,
    ADOPTED_ROWS,
    ADOPTED_REVISION,
    RETIRED,
    RETIRED_REVISION,
    SCHEMA_CHANGE,
    SCHEMA_REVISION,
)


class Turns(NamedTuple):
    """Positions at which what the log knew of a type, or its table, changed as a whole.

    `began`: an adoption did. `ended` is the last record of the newest one that ended, which
    logged every row that there was, in `revision` if that is known; `retired` the newest mark
    that the table is gone, when `retired_revision` was the type's newest. `changes` are, by rising
    position, the places of schema changes, each with the revision whose shape the table has since.
    """

    began: bool = False
    ended: int | None = None
    revision: int | None = None
    retired: int | None = None
    retired_revision: int | None = None
    changes: tuple[tuple[int, int], ...] = ()

    def join(self, other: Turns) -> Turns:
        """Both together."""
        last = max(self, other, key=lambda turns: turns.ended or 0)
        gone = max(self, other, key=lambda turns: turns.retired or 0)
        began = self.began or other.began
        return Turns(
            began=began,
            ended=last.ended,
            revision=last.revision,
            retired=gone.retired,
            retired_revision=gone.retired_revision,
            changes=tuple(sorted({*self.changes, *other.changes})),
        )

    def is_retired_at(self, revision: int) -> bool:
        """Whether the table is gone, if this is the type's newest revision."""
        if self.retired is None:
            return False
        return self.retired_revision is None or self.retired_revision >= revision


def read_turns(position: int, metadata: Iterable[tuple[str, str]]) -> Turns:
    """What one record of an adoption's aggregate says, by its metadata."""
    known = {key: value for key, value in metadata if key in _KEYS}
    ended = position if ADOPTED in known and ADOPTED_ROWS in known else None
    changed = _read_number(known.get(SCHEMA_REVISION)) if SCHEMA_CHANGE in known else None
    return Turns(
        began=ADOPTED in known,
        ended=ended,
        revision=_read_number(known.get(ADOPTED_REVISION)) if ended else None,
        retired=position if RETIRED in known else None,
        retired_revision=_read_number(known.get(RETIRED_REVISION)),
        changes=() if changed is None else ((position, changed),),
    )


def _read_number(text: str | None) -> int | None:
    # Metadata is anybody's to write: what is no number says nothing.
    return int(text) if text is not None and re.fullmatch("[0-9]{1,9}", text) else None


def name_adoption(type_name: str) -> str:
    """The aggregate whose entries hold the adopted rows of a type."""
    return f"{ADOPTION_PREFIX}{type_name}"


def join_turns(found: Iterable[tuple[str, Turns]]) -> dict[str, Turns]:
    """By type, what several records say together."""
    joined: dict[str, Turns] = {}
    for name, turns in found:
        if turns != Turns():
            joined[name] = joined.get(name, Turns()).join(turns)
    return joined


@dataclass(frozen=True, slots=True)
class Reached:
    """How far an adoption, or other work on all rows, came.

    `after` is the last logged row's key, as text; `revision` the type's when it began.
    """

    after: dict[str, str] | None = None
    rows: int = 0
    entries: int = 0
    done: bool = False
    revision: int = 0


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
        # A record that was pruned leaves what it said of a type with its outcome.
        rows = connection.exec_driver_sql(
            "SELECT x.aggregate_name, r.position, r.metadata "
            f"FROM {self._s}.oplog_entry x JOIN {self._s}.oplog_record r "
            "ON r.position = x.position WHERE x.aggregate_name = ANY(%s::text[]) "
            "AND (%s::bigint IS NULL OR r.position <= %s) "
            "AND pg_catalog.pg_visible_in_snapshot(r.transaction_id, %s::pg_snapshot) "
            "UNION ALL SELECT a.name, o.position, o.metadata "
            f"FROM {self._s}.oplog_outcome o CROSS JOIN pg_catalog.unnest(o.aggregates) AS a(name) "
            "WHERE o.aggregates IS NOT NULL AND a.name = ANY(%s::text[]) "
            "AND (%s::bigint IS NULL OR o.position <= %s)",
            (list(names), through, through, snapshot, list(names), through, through),
        )
        return join_turns(
            (names[name], read_turns(position, zip(flat[::2], flat[1::2], strict=True)))
            for name, position, flat in rows
            if flat is not None
        )

    def find_newest_revision(self, connection: Connection, type_name: str) -> int:
        """The newest revision of a type; 0 if there is none."""
        found = connection.exec_driver_sql(
            f"SELECT coalesce(max(revision), 0) FROM {self._s}.oplog_type WHERE type_name = %s",
            (type_name,),
        )
        return int(found.scalar_one())

    def lock_progress(
        self, connection: Connection, type_name: str, *, work: str = ADOPTION
    ) -> Reached | None:
        """The saved progress of a type's adoption, or other work, None if it has not begun.

        Another one of the type waits here until this transaction ends. The caller saves
        progress, or rolls back: a row that stays says that the adoption has begun.
        """
        made = connection.exec_driver_sql(
            f"INSERT INTO {self._s}.oplog_adoption (type_name, work) VALUES (%s, %s) "
            "ON CONFLICT DO NOTHING",
            (type_name, work),
        )
        return None if made.rowcount else self._read(connection, type_name, work, lock="FOR UPDATE")

    def read_progress(
        self, connection: Connection, type_name: str, *, work: str = ADOPTION
    ) -> Reached | None:
        """The saved progress, without waiting for others."""
        return self._read(connection, type_name, work)

    def _read(
        self, connection: Connection, type_name: str, work: str, *, lock: str = ""
    ) -> Reached | None:
        row = connection.exec_driver_sql(
            "SELECT after::text, rows, entries, done, revision "
            f"FROM {self._s}.oplog_adoption WHERE type_name = %s AND work = %s {lock}",
            (type_name, work),
        ).one_or_none()
        if row is None:
            return None
        after = None if row[0] is None else json.loads(row[0])
        rows, entries, done, revision = row[1:]
        return Reached(after, rows, entries, done=done, revision=revision)

    def write_progress(
        self, connection: Connection, type_name: str, *, reached: Reached, work: str = ADOPTION
    ) -> None:
        """Save how far the work came, in the transaction that appended its entry."""
        connection.exec_driver_sql(
            f"UPDATE {self._s}.oplog_adoption SET after = %s::jsonb, rows = %s, entries = %s, "
            "done = %s, revision = %s, updated_at = pg_catalog.clock_timestamp() "
            "WHERE type_name = %s AND work = %s",
            (
                None if reached.after is None else json.dumps(reached.after),
                reached.rows,
                reached.entries,
                reached.done,
                reached.revision,
                type_name,
                work,
            ),
        )
