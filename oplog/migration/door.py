"""Alembic's migrations go through the log's door: what they do to rows and tables is logged.

`import oplog.migration` in an `env.py` puts this around `MigrationContext.run_migrations`. It
needs a log: `context.configure(..., oplog=log)`, or one that is attached to the engine. While the
revisions run, their connection is in `log.migrating`; after each of them, in its transaction,
`log.note_migration` says what became of the tables. The engine itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

from alembic.runtime.migration import MigrationContext

from oplog.migration.given_log import find_log

NOTE_PRINTED = "oplog: SQL does not tell the log what became of its tables; run: oplog types sync"
"""The comment after each revision that is printed."""
_WRAPPED = "_oplog_door"
"""Set on the function that stands in the place of Alembic's."""


def open_doors() -> None:
    """Have every run of migrations go through the door of its log, if it has one."""
    run: Any = MigrationContext.run_migrations
    if hasattr(run, _WRAPPED):
        return

    @wraps(run)
    def run_migrations(self: MigrationContext, **kw: Any) -> None:
        with _open_door(self):
            run(self, **kw)

    setattr(run_migrations, _WRAPPED, True)
    target: Any = MigrationContext
    target.run_migrations = run_migrations


@contextmanager
def _open_door(context: MigrationContext) -> Iterator[None]:
    connection = None if context.as_sql else context.connection
    log = find_log(context.opts, connection)
    if log is None or context.dialect.name != "postgresql":
        yield
        return

    def note(**_: Any) -> None:
        if connection is None:
            context.impl.static_output(f"-- {NOTE_PRINTED}")
        else:
            log.note_migration(connection)

    callbacks = context.on_version_apply_callbacks
    # After those of the application, which may write rows.
    context.on_version_apply_callbacks = (*callbacks, note)
    try:
        with nullcontext() if connection is None else log.migrating(connection):
            yield
    finally:
        context.on_version_apply_callbacks = callbacks
