"""Garbage collection: deleting what no head, present or future, can need.

Safety does not depend on clocks: what a writer may be about to use has a number that the newest
head still reserves. Workers publish meanwhile, some of them on heads that are long gone. So heads
are deleted oldest first, each seen to be gone before the next, and never the newest two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.engine import Engine

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head
from oplog.archive.format.manifest import MAX_MANIFEST_BYTES, decode_manifest
from oplog.archive.format.path import (
    BLOB,
    COLLECTED,
    HEAD,
    INDEX,
    LOG,
    SNAPSHOT,
    name_head,
    parse_content,
    parse_head,
)
from oplog.archive.objectstore.protocol import ObjectInfo
from oplog.archive.ownership import require_owner
from oplog.archive.step import Step
from oplog.errors import ArchiveError, StorageConfigError, StoreUnavailableError
from oplog.sync.exporter import Exporter
from oplog.sync.head_update import publish_update
from oplog.sync.publisher import Emit
from oplog.upkeep.collection_check import require_published
from oplog.upkeep.head_survey import COLLECTED_BYTES
from oplog.upkeep.retention import Retention, apply_retention
from oplog.upkeep.roots import Roots, find_roots

GRACE_SECONDS = 7 * 24 * 3600.0
"""For so long after it was followed by another, a head and all it holds can be read."""
PROBE = "PROBE"
_TRIES = 8
_STEPS = {
    BLOB: Step.DELETE_BLOB,
    LOG: Step.DELETE_LOG,
    INDEX: Step.DELETE_INDEX,
    SNAPSHOT: Step.DELETE_MANIFEST,
    PROBE: Step.DELETE_PROBE,
    HEAD: Step.DELETE_HEAD,
}


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """What went, or with `dry_run` would go: `paths`, of `bytes` in all.

    `head` is the number of the newest head, `snapshots` how many it no longer had because of
    retention, `first_sequence` the oldest record it holds. `notes` say what was left because it
    is not known whether it is needed; `refused` what the store did not let be deleted.
    """

    paths: tuple[str, ...]
    bytes: int
    head: int
    snapshots: int = 0
    first_sequence: int = 1
    notes: tuple[str, ...] = ()
    refused: str | None = None
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


@dataclass(slots=True)
class _Tally:
    paths: list[str] = field(default_factory=list)
    bytes: int = 0
    refused: str | None = None


def collect_archive(
    exporter: Exporter,
    engine: Engine,
    retention: Retention,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    emit: Emit,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> CollectionReport:
    """Let the archive hold no more than `retention` says, then collect garbage.

    What retention lets go is deleted when the head that had it is past its grace. Raises what
    `publish_update` and `collect_garbage` raise.
    """
    archive = exporter.archive
    require_owner(engine, archive, schema=exporter.log.schema)
    before = archive.read_head()
    require_published(exporter, engine, before)
    draft = apply_retention(archive, before, retention, now=clock())
    if draft is not None and not dry_run:
        publish_update(
            exporter,
            engine,
            lambda _, head, __: apply_retention(archive, head, retention, now=clock()),
        )
    report = collect_garbage(
        archive,
        grace_seconds=grace_seconds,
        dry_run=dry_run,
        draft=None
        if draft is None or not dry_run
        else replace(draft, number=before.number + 1, previous=before.link()),
        emit=emit,
        clock=clock,
    )
    dropped = 0 if draft is None else len(before.snapshots) - len(draft.snapshots)
    return replace(report, snapshots=dropped)


def collect_garbage(
    archive: Archive,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    draft: Head | None = None,
    emit: Emit,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> CollectionReport:
    """Delete what neither the newest head, nor a pin, nor a head in its grace needs.

    A `draft` is for a dry run: the head that would be published before.
    Without permission to delete the report says so. Raises `ManifestInvalidError` for heads or
    pins that cannot be read, before anything is deleted, and `StoreUnavailableError`, after
    which it may be run again.
    """
    now = clock()
    cutoff = now - timedelta(seconds=grace_seconds)
    roots = find_roots(archive, cutoff=cutoff, now=now, emit=emit, draft=draft)
    tally = _Tally()
    for kind in (SNAPSHOT, BLOB, LOG, INDEX, PROBE):
        emit(Step.LIST_GARBAGE, f"{kind}/", 0)
        garbage = list(_list_garbage(archive, roots, kind, cutoff=cutoff))
        for info in sorted(garbage, key=lambda one: one.path):
            _delete(archive, info, tally, step=_STEPS[kind], emit=emit, dry_run=dry_run)
    _delete_heads(archive, roots, tally, emit=emit, dry_run=dry_run)
    return CollectionReport(
        tuple(tally.paths),
        tally.bytes,
        roots.newest.number,
        first_sequence=roots.newest.first_sequence,
        notes=tuple(roots.notes),
        refused=tally.refused,
        dry_run=dry_run,
    )


def _list_garbage(
    archive: Archive, roots: Roots, kind: str, *, cutoff: datetime
) -> Iterator[ObjectInfo]:
    for info in archive.store.list(f"{kind}/"):
        if kind == PROBE:
            if info.modified < cutoff:
                yield info
            continue
        try:
            number = parse_content(info.path, kind).number
        except ArchiveError:
            # Not made here: not ours to delete.
            continue
        if roots.needs(info.path) or not _may_go(
            archive, roots.newest, info, kind=kind, number=number
        ):
            continue
        if kind == BLOB and roots.unknown_blobs:
            continue
        if kind in (LOG, INDEX) and any(a <= number <= b for a, b in roots.unknown_ranges):
            continue
        yield info


def _may_go(archive: Archive, newest: Head, info: ObjectInfo, *, kind: str, number: int) -> bool:
    """Whether no head that is yet to come can need this object, which no head has."""
    if kind == BLOB:
        return number < newest.horizon
    if kind in (LOG, INDEX):
        return number < newest.first_sequence
    try:
        data = archive.store.get(info.path, most=MAX_MANIFEST_BYTES)
        return data is not None and decode_manifest(data, what=info.path).mint < newest.horizon
    except (StoreUnavailableError, StorageConfigError):
        raise
    except ArchiveError:
        # Whose it is cannot be read any more; it costs little to leave it.
        return False


def _delete(
    archive: Archive, info: ObjectInfo, tally: _Tally, *, step: Step, emit: Emit, dry_run: bool
) -> bool:
    """Delete one object; False if the store does not let it go, and none after that is tried."""
    if tally.refused is not None:
        return False
    if not dry_run:
        try:
            archive.store.delete(info.path)
        except StorageConfigError as error:
            tally.refused = f"{info.path}: {error.args[0]}"
            return False
        emit(step, info.path, info.size)
    tally.paths.append(info.path)
    tally.bytes += info.size
    return True


def _delete_heads(
    archive: Archive, roots: Roots, tally: _Tally, *, emit: Emit, dry_run: bool
) -> None:
    """Delete heads before the oldest one kept, oldest first, each seen to be gone."""
    emit(Step.LIST_HEADS, f"{HEAD}/", 0)
    found = {
        number: info
        for info in archive.store.list(f"{HEAD}/")
        if (number := parse_head(info.path)) is not None and number < roots.oldest_kept
    }
    if not found:
        return
    if not dry_run and not _mark_collected(archive, tally):
        return
    for number in sorted(found):
        if not _delete(
            archive, found[number], tally, step=Step.DELETE_HEAD, emit=emit, dry_run=dry_run
        ):
            return
        if dry_run:
            continue
        emit(Step.CONFIRM_DELETED, name_head(number), 0)
        if archive.store.get(name_head(number), most=MAX_HEAD_BYTES) is not None:
            tally.refused = f"{name_head(number)} is still there after it was deleted"
            return


def _mark_collected(archive: Archive, tally: _Tally) -> bool:
    """See to it that no head can be the first one any more, before the first one goes."""
    for _ in range(_TRIES):
        if archive.store.head(COLLECTED) is not None:
            return True
        try:
            archive.store.put(COLLECTED, COLLECTED_BYTES)
        except StorageConfigError as error:
            tally.refused = f"{COLLECTED}: {error.args[0]}"
            return False
    tally.refused = f"{COLLECTED} was written and is not there"
    return False
