"""Reads open transactions, and the age of the oldest row version's transaction id.

Without the rights of `pg_read_all_stats` the server hides other roles' transactions, and does not
say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

MOST_TRANSACTIONS = 20
"""Limit of open transactions read; the oldest ones are."""


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that a session of this database has open, or has prepared and left."""

    prepared: str | None
    """The name it was prepared under; None for a session's."""
    process_id: int
    """Of the session; 0 for a prepared transaction, which belongs to none."""
    role: str
    application_name: str
    state: str
    """Of the session, such as `idle in transaction`; empty for a prepared transaction."""
    seconds: int
    """Since it began, or was prepared."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Open transactions and the age of this database; the reading connection is left out."""

    transactions: Sequence[OpenTransaction]
    """Oldest first; only those that this role may see."""
    frozen_age: int
    """Age of `datfrozenxid`: transaction ids since the oldest that is not frozen."""


def read_activity(connection: Connection) -> Activity:
    """The oldest open transactions of the connection's database, and its age in transactions."""
    rows = connection.exec_driver_sql(
        """SELECT t.prepared, t.process_id, t.role, t.application_name, t.state,
  greatest(0, extract(epoch FROM pg_catalog.clock_timestamp() - t.began))::bigint
FROM (
  SELECT NULL::text AS prepared, a.pid AS process_id, coalesce(a.usename, '')::text AS role,
    coalesce(a.application_name, '') AS application_name, coalesce(a.state, '') AS state,
    a.xact_start AS began
  FROM pg_catalog.pg_stat_activity a
  WHERE a.datname = pg_catalog.current_database() AND a.backend_type = 'client backend'
    AND a.pid <> pg_catalog.pg_backend_pid() AND a.xact_start IS NOT NULL
  UNION ALL
  SELECT p.gid, 0, p.owner::text, '', '', p.prepared FROM pg_catalog.pg_prepared_xacts p
  WHERE p.database = pg_catalog.current_database()) t
ORDER BY t.began, t.process_id LIMIT %s""",
        (MOST_TRANSACTIONS,),
    )
    transactions = [OpenTransaction(*row) for row in rows]
    age = connection.exec_driver_sql(
        "SELECT pg_catalog.age(d.datfrozenxid)::bigint FROM pg_catalog.pg_database d "
        "WHERE d.datname = pg_catalog.current_database()"
    ).scalar_one()
    return Activity(transactions, age)
