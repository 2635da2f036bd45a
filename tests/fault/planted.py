"""Bugs planted into the product, to see the checker find them.

Three mistakes that a log like this is likely to have. Holds how each is put in; must not judge.
The hard thing is to change nothing else: the append function is taken as the product installed
it and altered in one place, and where that place is not found any more, planting fails.
"""

from __future__ import annotations

import os
import re
import signal
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from oplog.capture.draft import Draft
from oplog.capture.writer import RecordWriter
from oplog.errors import TicketConflictError
from oplog.receipt import Receipt
from oplog.schema.append import HEAD_MISSING, STALE_TICKET
from oplog.store import NewRecord

NO_COMPARE_AND_SWAP = "no compare-and-swap"
"""The ticket is raised whatever version it was taken at."""
REFUSAL_UNCHECKED = "refusal unchecked"
"""A stale ticket leaves everything as it is, and nobody looks: the rows commit without record."""
OWN_TRANSACTION = "redeemed in its own transaction"
"""The ticket is raised and committed first, rows and record after it."""

_STALE = "IF p_expected[n] <> v_version - 1 THEN"
_REDEEM = re.compile(
    r"IF p_expected IS NOT NULL THEN\s.*?"
    r"\sIF v_hashes IS NULL THEN o_versions := NULL; END IF;\s+END IF;",
    re.DOTALL,
)
_UNCHECKED = """
BEGIN
  PERFORM FROM oplog.oplog_ticket t WHERE t.aggregate_name = p_aggregates[1] FOR UPDATE;
  IF p_expected[1] <> coalesce(
      (SELECT t.version FROM oplog.oplog_ticket t WHERE t.aggregate_name = p_aggregates[1]),
      (SELECT max(e.version) FROM oplog.oplog_entry e WHERE e.aggregate_name = p_aggregates[1]),
      0) THEN
    o_versions := ARRAY[p_expected[1] + 1];
    o_hash := pg_catalog.sha256(p_data);
    RETURN;
  END IF;
"""

_REDEEMED = """CREATE TABLE planted_redeemed (
  record uuid PRIMARY KEY, versions bigint[], hashes bytea[])"""
_REDEEM_ALONE = """CREATE FUNCTION planted_redeem(
  p_aggregates text[], p_expected bigint[], p_record uuid) RETURNS void
LANGUAGE plpgsql AS $planted$
DECLARE
  v_count integer := cardinality(p_aggregates);
  v_version bigint;
  v_before bigint;
  v_made integer;
  v_hash bytea;
  v_hashes bytea[];
  o_versions bigint[];
BEGIN
  {redeem}
  INSERT INTO planted_redeemed VALUES (p_record, o_versions, v_hashes);
END $planted$"""
# The append function looks for nothing in public by itself.
_TAKE_REDEEMED = """SELECT r.versions, r.hashes INTO o_versions, v_hashes
    FROM public.planted_redeemed r WHERE r.record = p_record;"""

DIES_AFTER = 15
"""Redeemed tickets after which a client with the third bug dies, before its COMMIT."""


def plant_in_database(engine: Engine, bug: str) -> None:
    """Alter the append function of the log in schema `oplog`."""
    with engine.begin() as connection:
        definition = _read_append(connection)
        if bug == NO_COMPARE_AND_SWAP:
            definition = _replace_once(definition, _STALE, "IF false THEN")
        elif bug == REFUSAL_UNCHECKED:
            definition = _replace_once(definition, "\nBEGIN\n", _UNCHECKED)
        elif bug == OWN_TRANSACTION:
            redeem = _REDEEM.search(definition)
            assert redeem is not None, "the append function does not redeem as it did"
            _execute(connection, _REDEEMED)
            _execute(connection, _REDEEM_ALONE.format(redeem=redeem[0]))
            definition = _replace_once(definition, redeem[0], _TAKE_REDEEMED)
        else:
            raise ValueError(f"no such bug: {bug}")
        _execute(connection, definition)


def _read_append(connection: Connection) -> str:
    return str(
        connection.exec_driver_sql(
            "SELECT pg_get_functiondef('oplog.oplog_append'::regproc)"
        ).scalar_one()
    )


def _replace_once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"the append function has {old!r} {text.count(old)} times"
    return text.replace(old, new)


def _execute(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def plant_in_client(bug: str) -> None:
    """Alter this process, where a bug needs that."""
    if bug != OWN_TRANSACTION:
        return
    send_honestly = RecordWriter.send
    redeemed = 0

    def send(
        self: RecordWriter, connection: Connection, draft: Draft, *, commit: bool
    ) -> list[Receipt]:
        nonlocal redeemed
        if draft.record is not None:
            _redeem_alone(connection.engine, draft.record)
            redeemed += 1
            if redeemed == DIES_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)
        return send_honestly(self, connection, draft, commit=commit)

    patch.object(RecordWriter, "send", send).start()


def _redeem_alone(engine: Engine, record: NewRecord) -> None:
    alone = sa.create_engine(engine.url, poolclass=NullPool)
    try:
        with alone.begin() as connection:
            connection.exec_driver_sql(
                "SELECT planted_redeem(%s::text[], %s::bigint[], %s)",
                (list(record.aggregates), list(record.expected), record.record_id),
            )
    except DBAPIError as error:
        # A version that another client has redeemed and not written yet has no record.
        if getattr(error.orig, "sqlstate", None) not in {STALE_TICKET, HEAD_MISSING}:
            raise
        raise TicketConflictError(f"planted: a ticket of {record.aggregates} is stale") from error
