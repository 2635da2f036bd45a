"""Tables that a restore or a follower may write: those that this side names, not the archive alone.

An archive says which tables its types have. Its writer could name any table of the database.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.engine import Connection

from oplog.errors import ConfigurationError
from oplog.postgres.live_table import LiveTable
from oplog.reading.log_opener import LogOpener
from oplog.store.guard_state import read_guards


def require_named(connection: Connection, tables: Iterable[LiveTable], *, log: LogOpener) -> None:
    """Raise `ConfigurationError` for a table that is neither declared nor guarded here."""
    declared = {
        (table.schema, table.name) for one in log.catalog.types.values() for table in [one.table]
    }
    names = {name for _, name in declared}
    unnamed = [
        table
        for table in tables
        # A declaration without a schema means whichever the search path finds.
        if (table.schema, table.name) not in declared
        and not (table.name in names and (None, table.name) in declared)
    ]
    if not unnamed:
        return
    guarded = read_guards(connection, log.store.schema).tables
    foreign = sorted(f"{one.schema}.{one.name}" for one in unnamed if one.oid not in guarded)
    if foreign:
        raise ConfigurationError(
            f"the log has rows of {', '.join(foreign)}, which is neither declared by the "
            "application nor guarded in this database: nothing was written",
            hint="if the table is to be filled from the log, declare it, or track it in a "
            "migration of this database; if it is not, do not believe this archive",
        )
