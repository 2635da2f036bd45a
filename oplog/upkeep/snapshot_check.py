"""A snapshot's objects checked without keys: its manifest, and each chunk as a job.

Snapshots share chunks; each is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from oplog.archive.archive import Archive
from oplog.archive.format.head import Head, SnapshotRef
from oplog.archive.format.manifest import ChunkRef, Dataset, SnapshotManifest
from oplog.archive.format.path import parse_content
from oplog.archive.format.snapshot_chunk import decode_chunk
from oplog.errors import ArchiveError
from oplog.upkeep.problem import ArchiveProblem, ProblemKind, describe_error


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """A chunk to be looked at: what `sequence`'s snapshot says of it."""

    manifest: SnapshotManifest
    dataset: Dataset
    ref: ChunkRef


def iterate_chunk_jobs(
    archive: Archive,
    head: Head,
    *,
    find_chain: Callable[[int], bytes | None],
    note: Callable[[ArchiveProblem], None],
    enter: Callable[[str, int], bool],
) -> Iterator[ChunkJob]:
    """Check the manifests of `head`'s snapshots; the chunks that are yet to be looked at.

    `find_chain` knows the log's chain at a sequence, `enter` notes that an object is looked at and
    says whether it is so for the first time.
    """
    for snapshot in head.snapshots:
        fresh = enter(snapshot.path, 0)
        try:
            manifest = archive.read_manifest(snapshot)
        except ArchiveError as error:
            note(describe_error(error, snapshot.path, sequence=snapshot.sequence))
            continue
        for what, why in _list_faults(manifest, snapshot, head=head, find_chain=find_chain):
            if fresh:
                message = f"{snapshot.path} {why}"
                note(ArchiveProblem(snapshot.path, what, message, snapshot.sequence))
        for dataset in (*manifest.tables, manifest.heads):
            for ref in dataset.iterate_chunks():
                if enter(ref.path, ref.stored_bytes):
                    yield ChunkJob(manifest, dataset, ref)


def _list_faults(
    manifest: SnapshotManifest,
    snapshot: SnapshotRef,
    *,
    head: Head,
    find_chain: Callable[[int], bytes | None],
) -> Iterator[tuple[ProblemKind, str]]:
    if manifest.log_id != head.log_id:
        yield ProblemKind.INVALID, f"is of the log {manifest.log_id}"
    if manifest.generation > head.generation or manifest.recorded_at != snapshot.recorded_at:
        yield ProblemKind.INVALID, "is of another generation or time than its head says"
    if find_chain(snapshot.sequence) not in (None, manifest.chain):
        yield ProblemKind.CHAIN, f"is of another history than the log at {snapshot.sequence}"
    mints = [parse_content(ref.path).number for ref in manifest.iterate_chunks()]
    if max((manifest.mint, *mints)) >= head.horizon:
        # No writer can have been given these, and garbage collection would never delete them.
        yield ProblemKind.INVALID, "has numbers that were not given to a writer yet"


def check_chunk(archive: Archive, job: ChunkJob, *, whole: bool) -> ArchiveProblem | None:
    """What is wrong with a chunk; unless it is to be read `whole`, by presence and size only."""
    ref, sequence = job.ref, job.manifest.sequence
    try:
        if not whole:
            return look_at(archive, ref.path, ref.stored_bytes, sequence)
        data = archive.read_content(ref.path)
        header = decode_chunk(data, what=ref.path).header
    except ArchiveError as error:
        return describe_error(error, ref.path, sequence=sequence)
    dataset = job.dataset
    said = (job.manifest.log_id, dataset.schema, dataset.table, dataset.names, dataset.key, ref)
    found = (
        header.log_id,
        header.schema,
        header.table,
        header.columns,
        header.key,
        ChunkRef(
            path=ref.path,
            rows=header.rows,
            tombstones=header.tombstones,
            stored_bytes=len(data),
            raw_bytes=header.raw_bytes,
        ),
    )
    if found == said:
        return None
    message = f"{ref.path} is not the chunk of {dataset.name} that the snapshot means"
    return ArchiveProblem(ref.path, ProblemKind.INVALID, message, sequence)


def look_at(archive: Archive, path: str, size: int, sequence: int) -> ArchiveProblem | None:
    """What can be seen to be wrong with an object without reading it."""
    info = archive.store.head(path)
    if info is None:
        return ArchiveProblem(path, ProblemKind.MISSING, f"{path} is missing", sequence)
    if info.size == size:
        return None
    message = f"{path} has {info.size} bytes, and must have {size}"
    return ArchiveProblem(path, ProblemKind.CORRUPT, message, sequence)
