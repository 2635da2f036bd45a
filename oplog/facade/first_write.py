"""The binding of a first write, after a migration that nobody noted in the log.

A small table whose rows the migration wrote anew is logged again by the first writer. A large one
is not: a request would wait for it, and all writers of the table with it.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.engine import Connection

from oplog.adoption import AdoptionTarget, LockWait
from oplog.adoption.schema_changes import NotedBy, finish_types
from oplog.backoff import Backoff
from oplog.binding import Binding, bind_for_writing
from oplog.catalog import TypeCatalog
from oplog.errors import SchemaDriftError
from oplog.facade.learned_catalog import LearnedCatalog
from oplog.facade.log_parts import LogParts
from oplog.postgres.live_table import check_settings
from oplog.type_binding import BoundType

_MOST_BYTES = 16 * 1024 * 1024
"""Size of the largest table that a first writer logs again."""
_LOCK_WAIT = LockWait(
    backoff=Backoff(first_seconds=0.2, longest_seconds=0.5, jitter=0.5, deadline_seconds=10.0)
)
_SIZE = """SELECT coalesce(sum(pg_catalog.pg_relation_size(t.relid)), 0) FROM (
  SELECT %s::bigint::oid AS relid UNION
  SELECT p.relid FROM pg_catalog.pg_partition_tree(%s::bigint::oid) p) t"""


class FirstWrite:
    """Binds the first write of one engine, and the first one after each refusal."""

    def __init__(self, log: LogParts) -> None:
        self._log = log
        self._known = True
        """What another engine knows of the database may do: nothing was refused here yet."""

    def __call__(self, connection: Connection, *, apart: bool = True) -> Binding:
        """`bind_first_write`, of tables that a catalog learns from the database as well."""
        catalog, store = self._log.catalog, self._log.store
        if not isinstance(catalog, LearnedCatalog):
            return bind_first_write(connection, self._log, apart=apart)
        if not (self._known and apart):
            return self._learn(catalog, connection, apart=apart)[1]
        self._known = False
        check_settings(connection)
        state = catalog.read_state(connection, store, self._log.sealer.key_id)
        recalled = catalog.recall(state)
        if recalled is not None:
            return recalled
        found, binding = self._learn(catalog, connection, apart=apart)
        catalog.keep(state, found, binding)
        return binding

    def _learn(
        self, catalog: LearnedCatalog, connection: Connection, *, apart: bool
    ) -> tuple[TypeCatalog, Binding]:
        found = catalog.learn(connection, self._log.store)
        log = replace(self._log, catalog=found)
        return found, bind_first_write(connection, log, apart=apart)


def bind_first_write(connection: Connection, log: LogParts, *, apart: bool = True) -> Binding:
    """`bind_for_writing`, and rows that a migration wrote anew are logged again first.

    Raises `SchemaDriftError` where that is for `oplog types sync` to do.
    """
    binding = _bind(connection, log, apart=apart)
    if not binding.unfinished:
        return binding
    for bound in binding.unfinished:
        _require_small(connection, bound)
    by = NotedBy(log.catalog, make_target(log), lock_wait=_LOCK_WAIT)
    # In the caller's transaction, which may hold locks on the table already. What it has changed
    # there comes once more in its own record.
    finish_types(connection, binding.unfinished, by)
    # A rollback takes that back, and the next transaction has to look again.
    return replace(_bind(connection, log, apart=False), fresh=True)


def make_target(log: LogParts) -> AdoptionTarget:
    """The log, and what is needed to make entries of its rows."""
    return AdoptionTarget(
        store=log.store,
        keyring=log.keyring,
        sealer=log.sealer,
        codec=log.codec,
        on_event=log.on_event,
        describer=log.describer,
    )


def _bind(connection: Connection, log: LogParts, *, apart: bool) -> Binding:
    return bind_for_writing(
        connection,
        log.catalog,
        store=log.store,
        keyring=log.keyring,
        guard=log.guard,
        apart=apart,
    )


def _require_small(connection: Connection, bound: BoundType) -> None:
    size = connection.exec_driver_sql(_SIZE, (bound.live.oid, bound.live.oid)).scalar_one()
    if bound.shape.change.readopted or size > _MOST_BYTES:
        raise _refuse(bound)


def _refuse(bound: BoundType) -> SchemaDriftError:
    return SchemaDriftError(
        f"rows of {bound.live.schema}.{bound.live.name} were written anew by a migration, and are "
        "to be logged again before anything else is",
        hint="run: oplog types sync, as the role that owns the log; or let the migration do it: "
        "import oplog.migration in env.py, and context.configure(..., oplog=log)",
    )
