"""What the log's tables need now and then: partitions for the positions to come, and tidying.

Appending makes partitions as well, in a transaction of the application. Here they are made before
that. What else is done here can wait, and nothing depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.errors import ConfigurationError
from oplog.postgres.standby import require_primary
from oplog.store import Store
from oplog.store.housekeeping import (
    check_rows,
    list_unchecked,
    may_remove_locks,
    remove_idle_locks,
)
from oplog.store.partition_guards import NONE_MADE_LATER, GuardedPartitions, guard_partitions
from oplog.store.partition_store import PartitionStore

_LOCKS_AT_ONCE = 1000
"""Rows of locks removed in one transaction, for whose end waits who wants one of them."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What was made: `made` counts tables.

    `position` is the newest that was given to a record, `through_position` the last that has a
    partition, and there are `partitions` in all. `locks_removed` counts rows of locks that nobody
    held. `guards` are partitions of tracked tables that were made later: those that are guarded
    against TRUNCATE now, and those that still are not. `checked` are constraints for which rows
    that were there before were checked now, `broken` those that such a row breaks.
    """

    made: int
    position: int
    through_position: int
    partitions: int
    locks_removed: int = 0
    guards: GuardedPartitions = NONE_MADE_LATER
    checked: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "made": self.made,
            "position": self.position,
            "through_position": self.through_position,
            "partitions": self.partitions,
            "locks_removed": self.locks_removed,
            **self.guards.to_json(),
            "checked": list(self.checked),
            "broken": list(self.broken),
        }


def maintain_log(engine: Engine, *, schema: str) -> MaintenanceReport:
    """Make the partitions that are needed next, and tidy; a few look-ups where all is done.

    Each step is a transaction of its own. Raises `ConfigurationError` on a standby, and for a role
    that is no member of the log's owner.
    """
    with engine.begin() as connection:
        Store(schema).require_current(connection)
        require_primary(connection, "making partitions")
        report = make_ahead(connection, schema=schema)
    if report is None:
        raise ConfigurationError(
            "only the owner of the log's tables, or a member of that role, may make partitions",
            hint="do it as the role that runs the migrations; appending makes them too, so that "
            "nothing is lost",
        )
    # Each statement looks anew: what others did meanwhile is no conflict.
    reading = engine.execution_options(isolation_level="READ COMMITTED")
    with reading.begin() as connection:
        guards = guard_partitions(connection, schema)
    checked, broken = _check_older_rows(reading, schema)
    return replace(
        report,
        locks_removed=_remove_locks(reading, schema),
        guards=guards,
        checked=checked,
        broken=broken,
    )


def make_ahead(connection: Connection, *, schema: str) -> MaintenanceReport | None:
    """Make the partitions that are needed next; None for a role that may not."""
    store = PartitionStore(schema)
    if not store.may_make(connection):
        return None
    position = store.read_position(connection)
    made = store.make_ahead(connection, position)
    partitions = store.list_partitions(connection)
    return MaintenanceReport(
        made=made,
        position=position,
        through_position=max((one.last for one in partitions), default=0),
        partitions=len(partitions),
    )


def _remove_locks(engine: Engine, schema: str) -> int:
    removed, last = 0, _LOCKS_AT_ONCE
    while last == _LOCKS_AT_ONCE:
        with engine.begin() as connection:
            if not may_remove_locks(connection, schema):
                return removed
            last = remove_idle_locks(connection, schema, limit=_LOCKS_AT_ONCE)
        removed += last
    return removed


def _check_older_rows(engine: Engine, schema: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the constraints that every row keeps since now, and of those that some break."""
    checked, broken = [], []
    with engine.connect() as connection:
        unchecked = list_unchecked(connection, schema)
    for constraint in unchecked:
        with engine.connect() as connection, connection.begin() as transaction:
            if check_rows(connection, schema, constraint):
                checked.append(constraint.name)
            else:
                transaction.rollback()
                broken.append(constraint.name)
    return tuple(checked), tuple(broken)
