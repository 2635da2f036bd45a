"""The transaction of a chunk, and the table lock that keeps writers out until it ends.

A session that waits for a table lock blocks every later one that needs a conflicting lock. Each
wait is therefore short, with a pause before the next attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from oplog.adoption.table_rows import SAVEPOINT, name_rows
from oplog.backoff import Backoff
from oplog.errors import ConfigurationError, ConflictError
from oplog.postgres.live_table import LiveTable
from oplog.postgres.sqlstate import LOCK_NOT_AVAILABLE, read_sqlstate
from oplog.postgres.work import pin_settings

_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        # Row security would hide rows silently; "off" turns that into an error.
        "row_security": "off",
        # A chunk is read along the index of the primary key. Without this the planner may
        # choose to scan and sort the whole table, for each chunk.
        "enable_sort": "off",
        "jit": "off",
    }
)


@dataclass(frozen=True, slots=True)
class LockWait:
    """How long to wait for a lock: `attempt_seconds` in its queue each time, with pauses between.

    The pauses all have the same length, half of it drawn at random: others write meanwhile, and
    waiting longer would not help them.
    """

    attempt_seconds: float = 1.0
    backoff: Backoff = field(
        default_factory=lambda: Backoff(
            first_seconds=1.0, longest_seconds=1.0, jitter=0.5, deadline_seconds=300.0
        )
    )


@contextmanager
def open_own(connection: Connection) -> Iterator[None]:
    """Open a transaction for one chunk."""
    with connection.begin():
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        with pin_settings(connection, restore=False, more=_SETTINGS):
            yield


@contextmanager
def open_inside(connection: Connection) -> Iterator[None]:
    """Use the caller's transaction; its settings are restored at the end."""
    with pin_settings(connection, more=_SETTINGS):
        yield


def check_isolation(connection: Connection, *, doing: str = "an adoption") -> None:
    """Raise `ConfigurationError` unless the open transaction is READ COMMITTED.

    At a higher isolation level it would read old versions of rows under the lock, and log them
    at a position after their latest changes.
    """
    isolation = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation')"
    ).scalar_one()
    if isolation != "read committed":
        raise ConfigurationError(
            f"{doing} cannot run inside a {str(isolation).upper()} transaction: it would "
            "read rows as they were when the transaction began",
            hint="use a READ COMMITTED transaction, or a connection without a transaction",
        )


def lock_tables(
    connection: Connection, tables: Sequence[LiveTable], *, wait: LockWait, alone: bool = False
) -> None:
    """Lock the tables against writers until the transaction ends.

    The mode is SHARE, which does not block readers. Several transactions may hold it; with `alone`
    it is SHARE ROW EXCLUSIVE, which one holds, and may write. Raises a retryable `ConflictError`
    when the locks are not granted in time.
    """
    mode = "SHARE ROW EXCLUSIVE" if alone else "SHARE"
    pauses = wait.backoff.begin()
    names = ", ".join(name_rows(table) for table in tables)
    before = _execute(connection, "SELECT pg_catalog.current_setting('lock_timeout')")
    while True:
        # A failed LOCK aborts the transaction; the savepoint keeps it usable for another try.
        _execute(connection, f"SAVEPOINT {SAVEPOINT}")
        _set_timeout(connection, f"{max(1, round(wait.attempt_seconds * 1000))}ms")
        try:
            _execute(connection, f"LOCK TABLE {names} IN {mode} MODE")
        except OperationalError as error:
            if read_sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            # Releases the locks already granted on other tables of the list.
            _execute(connection, f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            pause = next(pauses, None)
            if pause is None:
                raise _unavailable(tables, wait) from error
        else:
            break
        _execute(connection, f"RELEASE SAVEPOINT {SAVEPOINT}")
        # Outside the lock's queue, so that waiting writers get their turn.
        wait.backoff.sleep(pause)
    _execute(connection, f"RELEASE SAVEPOINT {SAVEPOINT}")
    _set_timeout(connection, str(before))


def _unavailable(tables: Sequence[LiveTable], wait: LockWait) -> ConflictError:
    names = ", ".join(f"{table.schema}.{table.name}" for table in tables)
    return ConflictError(
        f"the lock on {names} was not granted within {wait.backoff.deadline_seconds:g} seconds: a "
        "transaction that wrote there is still open",
        hint="end that transaction and run this again, which continues where it stopped",
        retryable=True,
    )


def _set_timeout(connection: Connection, value: str) -> None:
    connection.exec_driver_sql("SELECT pg_catalog.set_config('lock_timeout', %s, true)", (value,))


def _execute(connection: Connection, statement: str) -> object:
    done = connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    return done.scalar() if done.returns_rows else None
