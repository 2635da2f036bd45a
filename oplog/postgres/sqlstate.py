"""Which SQLSTATEs mean that the same work may be tried again, and which that a server is away.

The codes are those of PostgreSQL's appendix "PostgreSQL Error Codes"; a class is the first two
characters of a code.
"""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
OBJECT_IN_USE = "55006"
UNIQUE_VIOLATION = "23505"

RUN_AGAIN = frozenset({SERIALIZATION_FAILURE, DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE})
"""The whole transaction, run again from its start, may succeed.

Serialization failure and deadlock, for which Postgres asks to run the transaction again, and a
lock that was not granted in time. Not 57014: a statement's timeout cannot be told from a
cancellation that somebody wanted.
"""

AWAY = ("08", "57P")
"""Beginnings of states of a connection that failed, and of a server that stops or starts."""

PASSING = (*AWAY, "53", "40", LOCK_NOT_AVAILABLE)
"""Beginnings of states that pass by themselves: besides `AWAY`, a lack of resources, a
transaction rolled back by the server, a lock that was not granted in time."""


def read_sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the driver, or of the one that SQLAlchemy wrapped.

    None if the error was not raised by the server.
    """
    found: str | None = getattr(getattr(error, "orig", None) or error, "sqlstate", None)
    return found


def may_run_again(error: BaseException) -> bool:
    """Whether it is a database error after which the transaction may be run again."""
    return isinstance(error, DBAPIError) and read_sqlstate(error) in RUN_AGAIN


def is_passing(error: DBAPIError) -> bool:
    """Whether a worker may wait and go on: the server is away, or short of something."""
    state = read_sqlstate(error)
    if state is None:
        # The server was not reached. Other errors without a state are mistakes of the caller.
        return isinstance(error, OperationalError | InterfaceError)
    return state.startswith(PASSING)


def is_away(error: DBAPIError) -> bool:
    """Whether the server cannot be reached, as far as the error tells."""
    state = read_sqlstate(error)
    return error.connection_invalidated or state is None or state.startswith(AWAY)
