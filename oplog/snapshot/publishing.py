"""Takes and publishes a snapshot of the tables at exactly one record of the archive.

One transaction publishes what it sees; another one sees the same and copies the tables, so that
snapshot and log agree while others go on writing and publishing. The head that names the snapshot
comes last, on top of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import Connection, Engine

from oplog.archive.archive import Archive
from oplog.archive.archived_log import ArchivedLog
from oplog.archive.format.head import MAX_SNAPSHOTS, Head, SnapshotRef
from oplog.archive.format.manifest import SnapshotManifest, encode_manifest
from oplog.archive.format.path import SNAPSHOT, name_content
from oplog.archive.history import is_on_history
from oplog.archive.step import Step
from oplog.crypto.seal import Sealer
from oplog.errors import ConfigurationError, LeaseLostError
from oplog.finding import Finding
from oplog.reading.log_opener import LogOpener
from oplog.reading.reader import OpenedRecord
from oplog.reading.type_match import list_secret_types
from oplog.snapshot.policy import SnapshotPolicy
from oplog.snapshot.take import SnapshotPoint, take_snapshot
from oplog.snapshot.touched_rows import iterate_changes
from oplog.store import Store
from oplog.sync.exact_view import ExactView, open_exact_view, take_turn
from oplog.sync.exporter import Exporter
from oplog.sync.head_update import publish_update
from oplog.sync.publisher import Publisher

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """A snapshot of the tables at `sequence` (highest position `position`).

    It has `rows` in all and consists of `total_bytes`, of which `bytes` were uploaded now.
    `taken` is False if nothing had changed, or none was due; the other numbers are then those
    of the archive's newest snapshot. `problems` are as for `SyncReport`.
    """

    taken: bool
    sequence: int
    position: int
    rows: int
    bytes: int
    total_bytes: int
    problems: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def publish_snapshot(
    engine: Engine,
    exporter: Exporter,
    *,
    schema: str,
    sealer: Sealer,
    log: LogOpener,
    check: Callable[[Connection], tuple[Finding, ...]] = lambda _: (),
    policy: SnapshotPolicy | None = None,
    full: bool = False,
) -> SnapshotReport:
    """Publish new records, and a snapshot of the tables at the last of them.

    With a `policy`, only if a snapshot is due. `full` writes all tables anew instead of layers.
    `check` is called in the transaction that reads the tables, and returns the report's
    `problems`. Others publish while the tables are copied. Raises what publishing, `check` and
    `take_snapshot` raise, `LeaseHeldError` when it is never this process's turn, and
    `ConfigurationError` when the archive has as many snapshots as a head can name.
    """
    archive = exporter.archive
    if policy is not None and not _is_due(head := archive.find_head(), policy):
        return _describe(archive, head)
    take_turn(lambda: exporter.publish_all(engine))
    with ExitStack() as opened:
        view = take_turn(lambda: opened.enter_context(open_exact_view(exporter, engine)))
        if view is None:
            return _describe(archive, archive.find_head())
        _check_room(archive, view.head)
        problems = check(view.connection)
        before = view.publisher.written_bytes
        manifest = _take(archive, view, schema=schema, sealer=sealer, log=log, full=full)
        if manifest is None:
            return replace(_describe(archive, view.head), problems=problems)
        ref = _put_manifest(view.publisher, manifest)
        uploaded = view.publisher.written_bytes - before
        take_turn(lambda: _publish(exporter, engine, view, manifest, ref=ref))
    return replace(_report(ref, rows=manifest.rows, uploaded=uploaded), problems=problems)


def _check_room(archive: Archive, head: Head) -> None:
    if len(head.snapshots) >= MAX_SNAPSHOTS:
        raise ConfigurationError(
            f"{archive.url} has {len(head.snapshots)} snapshots, and no head names more",
            hint="let older ones go with oplog collect --keep-snapshots N; records are published "
            "all the same",
        )


def _publish(
    exporter: Exporter,
    engine: Engine,
    view: ExactView,
    manifest: SnapshotManifest,
    *,
    ref: SnapshotRef,
) -> None:
    """Publish a head with the snapshot, on top of all that was published meanwhile."""

    def add(connection: Connection, head: Head, publisher: Publisher) -> Head:
        del connection, publisher
        # Else the view's lock may be gone, and with it what kept the chunks from collection.
        view.connection.exec_driver_sql("SELECT 1")
        chain = manifest.chain
        if head.horizon > manifest.mint or not is_on_history(
            exporter.archive, head, sequence=ref.sequence, chain=chain
        ):
            raise LeaseLostError(
                f"the snapshot at sequence {ref.sequence} was overtaken: another worker took over "
                f"{exporter.archive.url} meanwhile",
                hint="nothing was published of it: take another one",
            )
        kept = [one for one in head.snapshots if one.sequence != ref.sequence]
        return replace(head, snapshots=tuple(sorted([*kept, ref], key=lambda one: one.sequence)))

    publish_update(exporter, engine, add, snapshot=True)


def _put_manifest(publisher: Publisher, manifest: SnapshotManifest) -> SnapshotRef:
    data = encode_manifest(manifest)
    path = name_content(SNAPSHOT, manifest.sequence, data=data)
    publisher.put_content(path, data, step=Step.PUT_MANIFEST)
    return SnapshotRef(
        path=path,
        sequence=manifest.sequence,
        position=manifest.position,
        recorded_at=manifest.recorded_at,
        size_bytes=manifest.stored_bytes + len(data),
    )


def _take(
    archive: Archive,
    view: ExactView,
    *,
    schema: str,
    sealer: Sealer,
    log: LogOpener,
    full: bool,
) -> SnapshotManifest | None:
    connection, head, publisher = view.connection, view.head, view.publisher
    previous = None if full or not head.snapshots else archive.read_manifest(head.snapshots[-1])
    changes: Iterator[OpenedRecord] = iter(())
    if previous is not None:
        source = ArchivedLog(archive, head, schema=schema)
        reader = log.open_source(source)
        changes = iterate_changes(reader, source, after=previous.sequence, through=head.sequence)
    types = Store(schema).list_types(connection)
    return take_snapshot(
        connection,
        point=SnapshotPoint(
            log_id=head.log_id,
            generation=head.generation,
            sequence=head.sequence,
            chain=head.chain,
            position=head.position,
            recorded_at=head.recorded_at,
        ),
        mint=publisher.mint(),
        schema=schema,
        types=types,
        sealer=sealer,
        put=publisher.put_blob,
        previous=previous,
        changes=changes,
        secret=list_secret_types(log.catalog, types),
    )


def _is_due(head: Head | None, policy: SnapshotPolicy) -> bool:
    if head is None:
        return False
    newest = head.snapshots[-1] if head.snapshots else None
    if newest is None:
        return policy.is_due(records=head.sequence, age=None)
    age = datetime.now(UTC) - (_EPOCH + timedelta(microseconds=newest.recorded_at))
    return policy.is_due(records=head.sequence - newest.sequence, age=age)


def _describe(archive: Archive, head: Head | None) -> SnapshotReport:
    if head is None or not head.snapshots:
        return SnapshotReport(taken=False, sequence=0, position=0, rows=0, bytes=0, total_bytes=0)
    newest = head.snapshots[-1]
    return _report(newest, rows=archive.read_manifest(newest).rows, uploaded=0)


def _report(ref: SnapshotRef, *, rows: int, uploaded: int) -> SnapshotReport:
    return SnapshotReport(
        # Every snapshot that is taken uploads at least its manifest.
        taken=uploaded > 0,
        sequence=ref.sequence,
        position=ref.position,
        rows=rows,
        bytes=uploaded,
        total_bytes=ref.size_bytes,
    )
