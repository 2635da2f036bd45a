"""Finds out whether what a record says fits the rows that the log has before it."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from oplog.errors import ReplayError
from oplog.postgres.work import Driver
from oplog.reading.reader import OpenedRecord, RecordReader
from oplog.replay.past_tables import plan_past
from oplog.replay.rebuild import fold_records
from oplog.replay.rebuilt_table import make_scratch
from oplog.replay.rules import find_turns, make_rules


def find_misfit(
    connection: Connection, reader: RecordReader, record: OpenedRecord
) -> ReplayError | None:
    """The error with which a replay stops at this record; None if it goes past it.

    Folds all records before it, into temporary tables that are gone afterwards. Raises what a
    replay raises of one of those.
    """
    snapshot = reader.source.read_snapshot()
    turns = find_turns(reader, snapshot=snapshot)
    plans = plan_past(connection, reader.types.shapes, turns, through=None, whole=turns)
    rules = make_rules(plans, turns)
    # A table that refuses a row ends the transaction, or this savepoint.
    savepoint = connection.begin_nested()
    try:
        loaders = make_scratch(Driver(connection), plans)
        before = reader.iterate_records(snapshot, through=record.stored.position - 1)
        fold_records(before, loaders, rules=rules, report=lambda _: None)
        try:
            fold_records([record], loaders, rules=rules, report=lambda _: None)
        except ReplayError as error:
            return error
        return None
    finally:
        savepoint.rollback()
