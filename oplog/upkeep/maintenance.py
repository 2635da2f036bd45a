"""What the log's tables need now and then: partitions for the positions to come.

Appending makes them as well, in a transaction of the application. Here they are made before that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.errors import ConfigurationError
from oplog.postgres.standby import require_primary
from oplog.store import Store
from oplog.store.partition_store import PartitionStore


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What was made: `made` counts tables.

    `position` is the newest that was given to a record, `through_position` the last that has a
    partition, and there are `partitions` in all.
    """

    made: int
    position: int
    through_position: int
    partitions: int

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def maintain_log(engine: Engine, *, schema: str) -> MaintenanceReport:
    """Make the partitions that are needed next; costs a few look-ups if they are there.

    Raises `ConfigurationError` on a standby, and for a role that is no member of the log's owner.
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
    return report


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
