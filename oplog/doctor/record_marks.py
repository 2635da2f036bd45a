"""Marks that other records are read by, and records whose times mislead: facts and findings.

A mark is few bytes of metadata, and replay, restore and this diagnosis go by it. So the hash of
each is computed; those of all other records are for `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.finding import Finding, make_notice, make_problem
from oplog.postgres.quoting import quote_for_driver
from oplog.schema.guard import FORMAT_MARK
from oplog.schema.mark_names import QUARANTINE_AGGREGATE
from oplog.store import Store
from oplog.store.adopted import name_adoption
from oplog.store.quarantined import QuarantinedRecord, list_marked
from oplog.store.records import read_records
from oplog.store.rows import compute_hash

_AHEAD_MINUTES = 5
"""A record this far ahead of the server's clock was written under another clock."""


@dataclass(frozen=True, slots=True)
class RecordMarks:
    """What is quarantined, marks that do not match their hash, and the first record of the future.

    Positions, but for what is quarantined.
    """

    quarantined: Sequence[QuarantinedRecord] = ()
    altered: Sequence[int] = ()
    ahead: int | None = None


def read_record_marks(connection: Connection, store: Store) -> RecordMarks:
    """The facts, from the tables alone."""
    s = quote_for_driver(store.schema)
    names = {name_adoption(shape.type_name) for shape in store.list_types(connection)}
    positions = connection.exec_driver_sql(
        f"SELECT r.position FROM {s}.oplog_record r WHERE r.format = %s "
        f"AND r.position = ANY (ARRAY(SELECT x.position FROM {s}.oplog_entry x "
        "WHERE x.aggregate_name = ANY (%s::text[])))",
        (FORMAT_MARK, [*sorted(names), QUARANTINE_AGGREGATE]),
    ).scalars()
    marks = read_records(connection, s, list(positions))
    altered = [mark for mark in marks if compute_hash(mark) != mark.record_hash]
    ahead = connection.exec_driver_sql(
        f"SELECT min(r.position) FROM {s}.oplog_record r WHERE r.created_at > "
        f"pg_catalog.clock_timestamp() + interval '{_AHEAD_MINUTES} minutes'"
    ).scalar()
    return RecordMarks(
        list_marked([mark for mark in marks if mark not in altered]),
        [mark.position for mark in altered],
        ahead,
    )


def judge_record_marks(marks: RecordMarks) -> Iterator[Finding]:
    """Findings on them."""
    for position in marks.altered:
        yield make_problem(
            "mark-altered",
            f"position {position}",
            message="a mark does not match its hash: it says of another record, or of a type, that "
            "it is not to be read",
            hint="rows of oplog_record were altered; compare with a backup or the archive, and run "
            "`oplog verify`",
        )
    if marks.quarantined:
        last = marks.quarantined[-1]
        count = len(marks.quarantined)
        yield make_notice(
            "quarantined",
            f"position {last.position}",
            message=f"{count} record{' is' if count == 1 else 's are'} quarantined, and readers "
            f"pass over them; the last by {last.role}, with the reason {last.reason!r}",
            hint=f"`oplog tail --aggregate {QUARANTINE_AGGREGATE}` lists them, `oplog verify` "
            "shows what they left different",
        )
    if marks.ahead is not None:
        yield make_notice(
            "time-ahead",
            f"position {marks.ahead}",
            message="the record is younger than the server's clock says it is now: a clock was "
            "wrong. Until that time a place given as a time ends before this record, and pruning "
            "stops at it",
            hint="mend the clock; give positions instead of times meanwhile",
        )
