"""How large a log is, with which types and keys it was written, and whether it is in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from oplog.archive.archive import Archive
from oplog.crypto.keyring import Keyring
from oplog.doctor.activity import OpenTransaction, read_activity
from oplog.doctor.archive_status import ArchiveStatus, read_archive_status
from oplog.doctor.environment import judge_activity
from oplog.doctor.inspection import ServerStatus, list_guard_problems, read_server_status
from oplog.doctor.key_status import KeyStatus, read_keys
from oplog.finding import Finding
from oplog.json_value import format_time
from oplog.payload.shape import Shape
from oplog.store import Store


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The state of a log. `position` and `recorded_at` are those of the last entry.

    `guard_problems` are faults of the triggers that keep the log append-only. `transactions`
    are open in the database, oldest first; `warnings` are findings on them. `archive` is None
    unless one was given.
    """

    schema: str
    schema_version: int | None
    log_id: UUID
    entries: int
    aggregates: int
    position: int
    recorded_at: datetime | None
    server: ServerStatus
    shapes: Sequence[Shape]
    keys: Sequence[KeyStatus]
    guard_problems: Sequence[str]
    transactions: Sequence[OpenTransaction]
    warnings: Sequence[Finding]
    archive: ArchiveStatus | None = None

    def to_json(self) -> dict[str, Any]:
        """The status as one JSON object; without `archive` if none was given."""
        document: dict[str, Any] = {
            "schema": self.schema,
            "schema_version": self.schema_version,
            "log_id": str(self.log_id),
            "entries": self.entries,
            "aggregates": self.aggregates,
            "position": self.position,
            "recorded_at": format_time(self.recorded_at),
            "bytes": self.server.log_bytes,
            "types": list(_describe_types(self.shapes)),
            "keys": [key.to_json() for key in self.keys],
            "append_only": {
                "ok": not self.guard_problems,
                "problems": list(self.guard_problems),
            },
            "transactions": {
                "open": [asdict(one) for one in self.transactions],
                "warnings": [f"{f.where}: {f.message}" for f in self.warnings],
            },
            "server": {
                "version": self.server.version,
                "standby": self.server.standby,
                "database": self.server.database,
            },
        }
        if self.archive is not None:
            document["archive"] = self.archive.to_json()
        return document


def read_status(
    connection: Connection, store: Store, *, keyring: Keyring | None, archive: Archive | None
) -> StatusReport:
    """Read the state of the log; `SchemaVersionError` if there is none at this version."""
    store.require_current(connection)
    counted = store.read_status(connection)
    server = read_server_status(connection, store.schema)
    activity = read_activity(connection)
    log_id = store.read_log_id(connection)
    return StatusReport(
        schema=store.schema,
        schema_version=store.read_version(connection),
        log_id=log_id,
        entries=counted["entries"],
        aggregates=counted["aggregates"],
        position=counted["position"],
        recorded_at=counted["recorded_at"],
        server=server,
        shapes=store.list_types(connection),
        keys=read_keys(connection, store.schema, keyring=keyring),
        guard_problems=list_guard_problems(connection, store.schema),
        transactions=activity.transactions,
        warnings=list(judge_activity(activity)),
        archive=None
        if archive is None
        else read_archive_status(
            connection, archive, schema=store.schema, log_id=log_id, standby=server.standby
        ),
    )


def _describe_types(shapes: Sequence[Shape]) -> Sequence[Mapping[str, Any]]:
    """Each type once, with its revisions; the table is that of the newest."""
    types: dict[str, dict[str, Any]] = {}
    for shape in shapes:
        described = types.setdefault(shape.type_name, {"name": shape.type_name, "revisions": []})
        described["table"] = f"{shape.schema}.{shape.table}"
        described["revisions"].append(shape.revision)
    return list(types.values())
