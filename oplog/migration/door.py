"""Alembic's migrations go through the log's door: what they do to rows and tables is logged.

`import oplog.migration` in an `env.py` puts this around `MigrationContext.run_migrations`. It
needs a log: `context.configure(..., oplog=log)`, or one that is attached to the engine. While the
revisions run, their connection is in `log.migrating`; after each of them, in its transaction,
`log.note_migration` says what became of the tables. Records name the revision that they are of.
The engine itself is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

from alembic.runtime.migration import MigrationContext

from oplog.metadata_context import context
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
def _open_door(migration: MigrationContext) -> Iterator[None]:
    connection = None if migration.as_sql else migration.connection
    log = find_log(migration.opts, connection)
    if log is None or migration.dialect.name != "postgresql":
        yield
        return

    def note(**_: Any) -> None:
        if connection is None:
            migration.impl.static_output(f"-- {NOTE_PRINTED}")
        else:
            # It also appends what the revision changed, whose record has to name that one.
            log.note_migration(connection)

    callbacks = migration.on_version_apply_callbacks
    # After those of the application, which may write rows.
    migration.on_version_apply_callbacks = (*callbacks, note)
    try:
        with (
            _name_revisions(migration),
            nullcontext() if connection is None else log.migrating(connection),
        ):
            yield
    finally:
        migration.on_version_apply_callbacks = callbacks


@contextmanager
def _name_revisions(migration: Any) -> Iterator[None]:
    """Inside, records have the id of the revision that runs, and the direction it runs in."""
    steps = migration._migrations_fn  # noqa: SLF001 - nothing public is called before a revision
    current: dict[str, str | list[str]] = {}

    def name_each(*args: Any) -> Iterable[Any]:
        for step in steps(*args):
            current["revision"] = list(step.info.up_revision_ids)
            current["migration"] = "upgrade" if step.info.is_upgrade else "downgrade"
            yield step

    migration._migrations_fn = name_each  # noqa: SLF001 - as above
    try:
        with context(lambda: current):
            yield
    finally:
        migration._migrations_fn = steps  # noqa: SLF001 - as above
