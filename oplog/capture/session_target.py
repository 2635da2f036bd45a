"""The session or connection behind what an application passes to the log.

Unwraps asynchronous sessions and connections, and scoped sessions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session
from sqlalchemy.orm import session as orm_session
from sqlalchemy.util import ScopedRegistry

from oplog.errors import ConfigurationError


def find_session(session: Any) -> Session | Connection:
    """The blocking session or connection behind `session`."""
    if isinstance(session, (Session, Connection)):
        return session
    inner = getattr(session, "sync_session", getattr(session, "sync_connection", None))
    if isinstance(inner, (Session, Connection)):
        return inner
    # A mapped class has a registry, too: of classes, not of sessions.
    if isinstance(getattr(session, "registry", None), ScopedRegistry):
        return find_session(session())
    raise ConfigurationError(
        f"{type(session).__name__} is not a session",
        hint="give the session itself, as `with Sessions() as session` has it, or a connection of "
        "an attached engine",
    )


def belongs_to_session(connection: Connection) -> bool:
    """Whether a session has begun the connection's transaction.

    Asked at a COMMIT of rows that guards captured and no attached session announced. To listen
    to the beginning of every session of the process would tell the same, in each of them.
    """
    # The references are listed at once: other threads make sessions meanwhile.
    found = (reference() for reference in orm_session._sessions.valuerefs())  # noqa: SLF001
    transactions = (session.get_transaction() for session in found if session is not None)
    # SQLAlchemy gives no public way.
    return any(one is not None and connection in one._connections for one in transactions)  # noqa: SLF001


def find_blocking(session: Any) -> Session | Connection:
    """The same for calls that ask the database; an asynchronous one is refused."""
    if hasattr(session, "sync_session") or hasattr(session, "sync_connection"):
        raise ConfigurationError(
            "this call asks the database, which an AsyncSession does only inside run_sync",
            hint="await session.run_sync(lambda s: log.take_ticket(s, 'account/42'))",
        )
    return find_session(session)
