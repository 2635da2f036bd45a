"""A connection on which all statements see one snapshot: the live rows and the log agree in it.

The caller's transaction is used where it can be that snapshot. Where each of its statements sees
another state, and nothing was written in it yet, it is a second connection of the same engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from oplog.postgres.text_settings import fix_text_settings, set_back_text_settings

_REPEATABLE = ("repeatable read", "serializable")


@dataclass(frozen=True, slots=True)
class OneSnapshot:
    """`connection` in its snapshot, and what holds for its transaction."""

    connection: Connection
    read_only: bool
    zone: str
    """The time zone of the session."""

    def has_written(self) -> bool:
        """Whether the transaction has changed anything by now, temporary tables included.

        It sees its own changes, which may not be in the log before COMMIT.
        """
        found = self.connection.exec_driver_sql(
            "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
        )
        return bool(found.scalar_one())


@contextmanager
def open_one_snapshot(connection: Connection, *, apart: bool = False) -> Iterator[OneSnapshot]:
    """The snapshot. A connection that is in no transaction has one for the block, which commits.

    With `apart` that is on a second connection: an iteration that is left early must not end a
    transaction in which others have written.
    """
    raw = connection.connection.driver_connection
    begun = connection.in_transaction()
    if getattr(raw, "autocommit", False) or (apart and not begun):
        with _open_second(connection) as found:
            yield found
        return
    if not begun:
        with connection.begin():
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield _describe(connection)[1]
        return
    isolation, found = _describe(connection)
    if isolation in _REPEATABLE or found.has_written():
        yield found
        return
    with _open_second(connection) as other:
        yield other


@contextmanager
def _open_second(connection: Connection) -> Iterator[OneSnapshot]:
    with connection.engine.connect() as other:
        other.execution_options(isolation_level="REPEATABLE READ")
        with other.begin():
            yield _describe(other)[1]


def _describe(connection: Connection) -> tuple[str, OneSnapshot]:
    isolation, read_only, zone = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('transaction_isolation'), "
        "pg_catalog.current_setting('transaction_read_only') = 'on', "
        "pg_catalog.current_setting('timezone')"
    ).one()
    return isolation, OneSnapshot(connection, read_only=read_only, zone=zone)


@contextmanager
def pin_text(connection: Connection) -> Iterator[None]:
    """Fix how values are printed and read until the block ends.

    Row security is off: it would hide rows in silence, and so is an error.
    """
    before = fix_text_settings(connection)
    others = connection.exec_driver_sql(
        "SELECT pg_catalog.current_setting('row_security'), "
        "pg_catalog.set_config('row_security', 'off', true)"
    ).one()
    # On an error the transaction or savepoint is rolled back, and its settings with it.
    yield
    set_back_text_settings(connection, before)
    set_locally(connection, "row_security", others[0])


def set_locally(connection: Connection, name: str, value: str) -> None:
    """Set a setting until the transaction ends."""
    connection.exec_driver_sql("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
