"""Read access to an archive: its newest head, and verified objects.

The head is found without trusting hints or listings, and every byte that is returned was compared
with its name. A worker that was suspended may create a head where garbage collection has made
room. So a head counts only while the one before it is there; that is read last, after nothing
newer was found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import count
from typing import TypeAlias

from oplog.archive.claim import check_follows, decode_item
from oplog.archive.format.canonical_json import MAX_DOCUMENT_BYTES
from oplog.archive.format.container import MAX_OBJECT_BYTES
from oplog.archive.format.head import MAX_HEAD_BYTES, Head, SnapshotRef
from oplog.archive.format.index import (
    MAX_NODE_BYTES,
    Item,
    Levels,
    decode_node,
    iterate_items,
    iterate_newest,
)
from oplog.archive.format.manifest import MAX_MANIFEST_BYTES, SnapshotManifest, decode_manifest
from oplog.archive.format.path import (
    COLLECTED,
    HEAD,
    LATEST,
    MAX_HINT_BYTES,
    MINT_BITS,
    name_head,
    parse_content,
    parse_head,
    parse_hint,
)
from oplog.archive.format.segment import Segment, SegmentHeader
from oplog.archive.format.typefile import LoggedTypes, decode_types
from oplog.archive.head_trust import HeadTrust
from oplog.archive.objectstore.probe import Verdict, probe_store
from oplog.archive.objectstore.protocol import ObjectStore
from oplog.archive.read_ahead import read_ahead
from oplog.archive.rollback import refuse_forked, refuse_hinted, refuse_missing, refuse_older
from oplog.errors import (
    ConfigurationError,
    ManifestInvalidError,
    ObjectTooLargeError,
    SegmentCorruptError,
    SegmentMissingError,
    SignedForkError,
)

READ_AHEAD = 4
"""Segments fetched before they are asked for."""
_READ_AHEAD_BYTES = 64 * 1024 * 1024
"""As stored, unless one alone is larger: several of the largest would not fit into memory."""
_CACHED_NODES = 256
_LONGEST_WALK = 32
"""Heads looked at one after the other before the store is asked for a list."""
_TRIES = 5
Demand: TypeAlias = Callable[["Archive", Head | None], None]
"""What a caller asks of the newest head, which is None where nothing was ever published."""


class Archive:
    """One archive in one object store. Not shared between threads."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        single_writer: bool = False,
        verdict: Verdict | None = None,
        read_ahead: int = READ_AHEAD,
        accept_older: bool = False,
        trust: HeadTrust | None = None,
        demand: Demand | None = None,
    ) -> None:
        """`verdict` is what a probe found; left out, the store is probed before the first write.

        `trust` says whose heads are believed and signs new ones. `demand` is asked once about the
        newest head, and raises for one that is not what its caller expects. `accept_older` goes on
        from the newest head that can be read although `LATEST` names a newer one, which is gone:
        what was published with that is given up.
        """
        self.store = store
        self.single_writer = single_writer
        self._verdict = verdict
        self._read_ahead = read_ahead
        self.accept_older = accept_older
        self.hinted = 0
        """The head that `LATEST` named when the newest one was looked for."""
        self._accepted = 0
        self.trust = trust or HeadTrust()
        self._demand = demand
        self._seen = 0
        self._newest: Head | None = None
        self._nodes: OrderedDict[tuple[Item, int], list[Item]] = OrderedDict()

    def reopen(self, store: ObjectStore) -> Archive:
        """The same archive for another thread, through `store`, which leads to the same objects."""
        return Archive(
            store,
            single_writer=self.single_writer,
            verdict=self._verdict,
            read_ahead=self._read_ahead,
            accept_older=self.accept_older,
            trust=self.trust,
            demand=self._demand,
        )

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self.store.url

    def require_writable(self) -> None:
        """Probe the store once; `ConfigurationError` if two writers could overwrite each other."""
        if self._verdict is None:
            self._verdict = probe_store(self.store)
        if self._verdict is not Verdict.ATOMIC and not self.single_writer:
            doing = (
                "answers that it cannot create an object on condition that there is none"
                if self._verdict is Verdict.REFUSES
                else "overwrites objects although it is asked not to"
            )
            raise ConfigurationError(
                f"the store at {self.url} {doing}: two workers at once could undo each other",
                hint="use a store that supports If-None-Match, or say single_writer=True and see "
                "to it that one worker runs at a time",
            )

    # -- the newest head ------------------------------------------------------------------

    def read_head(self) -> Head:
        """The newest head; `SegmentMissingError` if there is none."""
        head = self.find_head()
        if head is None:
            raise SegmentMissingError(
                f"{self.url} holds no archive: there is no head",
                hint="check the URL; a first pass of log.sync makes an archive",
            )
        return head

    def find_head(self, *, accept_older: bool | None = None) -> Head | None:
        """The newest head; None if nothing was ever published here.

        Raises `ManifestInvalidError` for heads that were altered, and `HeadRolledBackError` when
        the newest one is older than what this object has seen, or than what `LATEST` names
        (unless `accept_older`, which is as for the whole object if it is left out).
        """
        found = 0
        # Before any head: the hint was written after that head, which is only collected once there
        # is a newer one.
        self.hinted = self._read_hint()
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1
            newest = self._find_newest(listed=attempt > 0)
            found = 0 if newest is None else newest.number
            if found < self._seen or not self._takes(found, accept_older):
                continue
            if newest is None:
                if not self._was_used():
                    self._meet_demand(None)
                    return None
                continue
            try:
                if self.counts(newest):
                    self._keep_newest(newest)
                    return newest
            except (ManifestInvalidError, SignedForkError):
                # Two workers that were suspended may each have created a head where heads were
                # collected. Their heads do not follow each other, and say nothing about the
                # newest one, which the store's list may show at the next try.
                if last:
                    raise
        if found < self._seen:
            raise refuse_older(self.url, found=found, seen=self._seen)
        if not self._takes(found, None) and (found or not self._was_used()):
            raise refuse_hinted(self.url, found=found, named=self.hinted)
        raise refuse_missing(self.url, found=found)

    def _keep_newest(self, head: Head) -> None:
        known = self._newest
        if known is not None and known.number == head.number and known != head and known.publisher:
            raise refuse_forked(self.url, known.encode(), head.encode(), number=head.number)
        self._meet_demand(head)
        self._seen, self._newest = head.number, head

    def _meet_demand(self, head: Head | None) -> None:
        if self._demand is not None:
            self._demand(self, head)
            # What follows this head has all that it has.
            self._demand = None

    def decode_head(self, data: bytes, *, number: int) -> Head:
        """The head `number` in `data`, if it is believed; raises as `HeadTrust.decode`."""
        return self.decode_as(data, what=name_head(number))

    def decode_as(self, data: bytes, *, what: str) -> Head:
        """The head in `data`, wherever it is, if it is believed; raises as `HeadTrust.decode`."""
        return self.trust.decode(data, what=what, url=self.url)

    def _takes(self, found: int, accept_older: bool | None) -> bool:  # noqa: FBT001 - as it was given
        """Whether head `found`, the newest there is, is no older than what the hint names."""
        if found >= self.hinted:
            return True
        if accept_older is None and self.accept_older:
            # Only for one head: the operator has accepted the loss of no other.
            self._accepted = self._accepted or self.hinted
            return self._accepted == self.hinted
        return bool(accept_older)

    def _was_used(self) -> bool:
        """Whether there ever was a head, asked when none was found.

        Head 1 is there until it is collected, and the mark is there before that: a list that
        leaves out everything, or shows only what is gone, does not make an archive a new one.
        """
        absent = self._read_head_bytes(1) is None
        return not absent or self.store.head(COLLECTED) is not None

    def _find_newest(self, *, listed: bool) -> Head | None:
        """The head that has none after it, as far as can be seen; None if there is none at all."""
        start = max(self._seen, 0 if listed else self.hinted)
        data = self._read_head_bytes(start) if start else None
        # Numbers of writers that no store keeps apart jump from epoch to epoch: no walk gets there.
        jumps = self.single_writer or start >> MINT_BITS > 0
        if data is None or jumps or listed:
            # 1, for a list that leaves out the only heads there are.
            start = max(self._list_newest(), start if data else 1)
            data = self._read_head_bytes(start)
        if data is None:
            return None
        number, data = self._walk(start, data)
        head = self.decode_head(data, number=number)
        if head.number != number:
            raise ManifestInvalidError(
                f"{name_head(number)} says that it is head {head.number}",
                hint="objects were moved or copied by hand: bring the original back",
            )
        return head

    def counts(self, head: Head) -> bool:
        """Whether `head` follows what is there; asked after nothing newer was found.

        Heads are collected oldest first, each gone before the next. So if the one before is
        still there, this one was never collected, and was not made in its place.
        """
        if head.previous is None:
            return self.store.head(COLLECTED) is None
        data = self._read_head_bytes(head.previous.number)
        if data is None:
            return False
        self.trust.check_successor(head, data, what=name_head(head.previous.number))
        if sha256(data).digest() != head.previous.digest:
            if head.publisher and self._is_signed_head(data, head.previous.number):
                raise refuse_forked(self.url, data, head.encode(), number=head.previous.number)
            raise ManifestInvalidError(
                f"{name_head(head.previous.number)} is not the head that "
                f"{name_head(head.number)} was built on",
                hint="one of both was altered: run oplog check with an older copy of the bucket",
            )
        return True

    def _is_signed_head(self, data: bytes, number: int) -> bool:
        try:
            found = self.decode_head(data, number=number)
        except ManifestInvalidError:
            return False
        return found.number == number and found.publisher is not None

    def _walk(self, number: int, data: bytes) -> tuple[int, bytes]:
        """Go forward from a head that is there to one that has none after it."""
        for steps in count(1):
            found = self._read_head_bytes(number + 1)
            if found is None:
                break
            number, data = number + 1, found
            if steps % _LONGEST_WALK == 0:
                newest = self._list_newest()
                if newest > number and (found := self._read_head_bytes(newest)) is not None:
                    number, data = newest, found
        return number, data

    def _read_hint(self) -> int:
        try:
            return parse_hint(self.store.get(LATEST, most=MAX_HINT_BYTES)) or 0
        except ObjectTooLargeError:
            # Anything may stand there: what no publisher writes says nothing.
            return 0

    def _list_newest(self) -> int:
        after = name_head(self._seen - 1) if self._seen else ""
        numbers = (parse_head(info.path) for info in self.store.list(f"{HEAD}/", after=after))
        return max((number for number in numbers if number is not None), default=0)

    def _read_head_bytes(self, number: int) -> bytes | None:
        return self.store.get(name_head(number), most=MAX_HEAD_BYTES)

    # -- verified content -----------------------------------------------------------------

    def read_content(self, path: str, *, most: int = MAX_OBJECT_BYTES) -> bytes:
        """The bytes of content, which are those its name promises.

        Raises `SegmentMissingError` and `SegmentCorruptError`, naming the object.
        """
        name = parse_content(path)
        data = self.store.get(path, most=most)
        if data is None:
            raise SegmentMissingError(
                f"{path} is missing from {self.url}",
                hint="oplog check lists what is missing; oplog resync writes it again from the "
                "database, where that still has it",
            )
        if sha256(data).digest() != name.digest:
            raise SegmentCorruptError(
                f"the bytes of {path} in {self.url} do not have the SHA-256 in its name",
                hint="the object was altered or cut short: oplog resync writes it again from the "
                "database, where that still has it",
            )
        return data

    def read_node(self, item: Item, level: int) -> Sequence[Item]:
        """The items of a node of the index."""
        # By all that is claimed of it, not by its name: another head may claim something else.
        found = self._nodes.get((item, level))
        if found is None:
            data = self.read_content(item.path, most=MAX_NODE_BYTES)
            found = decode_node(data, item, level=level)
            self._nodes[item, level] = found
            if len(self._nodes) > _CACHED_NODES:
                self._nodes.popitem(last=False)
        return found

    def iterate_items(
        self, levels: Levels, *, after: int = 0, through: int | None = None
    ) -> Iterator[Item]:
        """Segments with a sequence over `after` up to `through`, oldest first."""
        return iterate_items(levels, self.read_node, after=after, through=through)

    def iterate_newest(self, levels: Levels, *, after: int = 0) -> Iterator[Item]:
        """Segments with a sequence over `after`, newest first."""
        return iterate_newest(levels, self.read_node, after=after)

    def read_segment(self, item: Item) -> Segment:
        """A segment, which is what `item` says; raises as `read_content`, and decoders do."""
        return decode_item(self.read_content(item.path), item)

    def iterate_segments(
        self, levels: Levels, *, after: int = 0, through: int | None = None
    ) -> Iterator[tuple[Item, Segment]]:
        """Segments with a sequence over `after` up to `through`, oldest first, fetched ahead."""
        items = self.iterate_items(levels, after=after, through=through)
        before: SegmentHeader | None = None
        # The index is read by this thread alone; the others only fetch.
        ahead = read_ahead(
            items,
            self.read_segment,
            threads=self._read_ahead,
            most_bytes=_READ_AHEAD_BYTES,
            measure=lambda item: item.size_bytes,
        )
        for item, segment in ahead:
            if before is not None:
                check_follows(before, segment, item.path)
            before = segment.header
            yield item, segment

    def read_types(self, head: Head) -> LoggedTypes:
        """The types and key check values of the log, as of a head."""
        if head.types is None:
            return LoggedTypes((), {})
        data = self.read_content(head.types.path, most=MAX_DOCUMENT_BYTES)
        return decode_types(data, what=head.types.path)

    def read_manifest(self, snapshot: SnapshotRef) -> SnapshotManifest:
        """A snapshot's manifest; `ManifestInvalidError` unless it is what `snapshot` says."""
        data = self.read_content(snapshot.path, most=MAX_MANIFEST_BYTES)
        manifest = decode_manifest(data, what=snapshot.path)
        if (manifest.sequence, manifest.position) != (snapshot.sequence, snapshot.position):
            raise ManifestInvalidError(
                f"{snapshot.path} is of sequence {manifest.sequence}, position "
                f"{manifest.position}, and the head claims otherwise",
                hint="one of both was altered: run oplog check",
            )
        return manifest
