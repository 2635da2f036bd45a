"""The settings under which PostgreSQL prints and reads values the way the log stores them.

`oplog.value.TEXT_SETTINGS` lists them; this module sets them for a transaction, and sets back what
was there. The log's own functions do the same in `oplog.schema.touched_keys`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from oplog.postgres.quoting import quote_literal
from oplog.value import TEXT_SETTINGS

_FIX = ", ".join(
    f"pg_catalog.set_config({quote_literal(name)}, {quote_literal(value)}, true)"
    for name, value in TEXT_SETTINGS.items()
)
_READ = ", ".join(
    f"pg_catalog.current_setting({quote_literal(name)}) AS {name}" for name in TEXT_SETTINGS
)
_CURRENT = ", ".join(f"pg_catalog.current_setting({quote_literal(name)})" for name in TEXT_SETTINGS)
# OFFSET 0 keeps the subquery apart: the settings are read before they are set.
_READ_AND_FIX = f"SELECT s.*, {_FIX} FROM (SELECT {_READ} OFFSET 0) s"
FIXED_SETTINGS = (
    f"SELECT b.before, ARRAY[{_FIX}] FROM (SELECT ARRAY[{_CURRENT}] OFFSET 0) b(before)"
)
"""A query of one row, which sets them; its first column is for `set_back_text_settings`."""
_SET_BACK = "SELECT " + ", ".join(
    f"pg_catalog.set_config({quote_literal(name)}, %s, true)" for name in TEXT_SETTINGS
)


def fix_text_settings(connection: Connection) -> tuple[str, ...]:
    """Set them until the transaction ends, in one statement; returns what they were."""
    row = connection.exec_driver_sql(_READ_AND_FIX).one()
    return tuple(row[: len(TEXT_SETTINGS)])


def set_back_text_settings(connection: Connection, before: Sequence[str]) -> None:
    """Restore what `fix_text_settings` returned; no statement if nothing was changed."""
    if tuple(before) != tuple(TEXT_SETTINGS.values()):
        connection.exec_driver_sql(_SET_BACK, tuple(before))
