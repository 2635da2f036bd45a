"""What must not be collected: all that is reached from the heads that are kept.

Pins are looked for after the newest head was found, so that a pin put later was compared with a
head at least as new. Whatever a damaged object would have led to counts as needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from oplog.archive.archive import Archive
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, decode_head
from oplog.archive.format.path import PIN, name_head
from oplog.archive.step import Step
from oplog.errors import ArchiveError, ManifestInvalidError
from oplog.sync.publisher import Emit
from oplog.upkeep.problem import ArchiveProblem, ProblemKind, describe_error
from oplog.upkeep.tree_walk import walk_tree


@dataclass(slots=True)
class Roots:
    """What is needed, and where that is not known.

    `oldest_kept` is the number of the oldest head that stays. Objects numbered within
    `unknown_ranges`, and with `unknown_blobs` all blobs, may be needed by what is damaged.
    """

    newest: Head
    oldest_kept: int
    needed: set[bytes] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unknown_ranges: list[tuple[int, int]] = field(default_factory=list)
    unknown_blobs: bool = False

    def needs(self, path: str) -> bool:
        """Whether a head that is kept leads to `path`."""
        return _shorten(path) in self.needed

    def mark(self, path: str) -> None:
        """Note that `path` is needed."""
        self.needed.add(_shorten(path))


def find_roots(
    archive: Archive, *, cutoff: datetime, now: datetime, emit: Emit, draft: Head | None = None
) -> Roots:
    """Follow the newest head, heads that had no successor before `cutoff`, and all pins.

    With a `draft`, as if that were the newest head, published `now`.
    """
    newest = draft or archive.read_head()
    emit(Step.RESOLVE_HEAD, name_head(newest.number), 0)
    # Only now: a pin that is put later was compared with a head at least as new.
    pins = _read_pins(archive, newest, emit)
    roots = Roots(newest, newest.number)
    _reach(archive, roots, newest, lost=frozenset())
    head = newest
    while head.previous is not None:
        path = name_head(head.previous.number)
        data = archive.store.get(path, most=MAX_HEAD_BYTES)
        if data is None:
            break
        info = archive.store.head(name_head(head.number))
        since = now if info is None else info.modified
        if since <= cutoff and head is not newest:
            break
        roots.oldest_kept = head.previous.number
        if since <= cutoff:
            # Kept since readers ask for it, not for what it holds.
            break
        try:
            head = _decode_before(head, data, path=path)
        except ManifestInvalidError as error:
            # What it held is not known, nor what was before it: heads stay as they are.
            roots.notes.append(str(error.args[0]))
            roots.oldest_kept = 0
            break
        _reach(archive, roots, head, lost=frozenset({ProblemKind.MISSING}))
    for pin in pins:
        _reach(archive, roots, pin, lost=frozenset({ProblemKind.MISSING}))
    return roots


def _decode_before(head: Head, data: bytes, *, path: str) -> Head:
    """The head that `head` follows: believed because it is the one that `head` names."""
    if head.previous is None or sha256(data).digest() != head.previous.digest:
        raise ManifestInvalidError(
            f"{path} is not the head that {name_head(head.number)} was built on",
            hint="it was altered: heads before it stay as they are",
        )
    return decode_head(data, what=path)


def _read_pins(archive: Archive, newest: Head, emit: Emit) -> list[Head]:
    emit(Step.LIST_PINS, f"{PIN}/", 0)
    pins = []
    for info in archive.store.list(f"{PIN}/"):
        data = archive.store.get(info.path, most=MAX_HEAD_BYTES)
        if data is None:
            continue
        pin = archive.decode_as(data, what=info.path)
        if pin.archive_id != newest.archive_id:
            raise ManifestInvalidError(
                f"{info.path} is a head of another archive",
                hint="nothing was deleted: remove the pin, or bring the right object back",
            )
        pins.append(pin)
    return pins


def _reach(archive: Archive, roots: Roots, head: Head, *, lost: frozenset[ProblemKind]) -> None:
    """Keep all that `head` leads to. What is `lost` in these ways leads nowhere any more."""

    def note(problem: ArchiveProblem) -> None:
        roots.notes.append(problem.message)

    trees = [(head.levels, head.first_sequence - 1)]
    trees += [(branch.levels, branch.sequence) for branch in head.branches]
    for levels, after in trees:
        for place in walk_tree(
            archive, levels, after=after, note=note, on_node=lambda item, _: roots.mark(item.path)
        ):
            if place.level:
                roots.unknown_ranges.append((place.item.first, place.item.last))
            roots.mark(place.item.path)
    if head.types is not None:
        roots.mark(head.types.path)
    for snapshot in head.snapshots:
        if roots.needs(snapshot.path):
            continue
        roots.mark(snapshot.path)
        try:
            manifest = archive.read_manifest(snapshot)
        except ArchiveError as error:
            problem = describe_error(error, snapshot.path)
            note(problem)
            roots.unknown_blobs = roots.unknown_blobs or problem.what not in lost
            continue
        for ref in manifest.iterate_chunks():
            roots.mark(ref.path)


def _shorten(path: str) -> bytes:
    # Two paths that are the same by chance are both kept: that is harmless.
    return sha256(path.encode()).digest()[:8]
