"""Whether segments, one after the other, are one unbroken log.

It takes about 150 bytes of memory for each aggregate. After damage it goes on: a segment that
could not be read is known by what its item says, and what it may have changed is forgotten, so
that no sound record is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from hashlib import sha256
from uuid import UUID

from oplog.archive.format.index import Item
from oplog.archive.format.segment import Segment, extend_chain, start_chain
from oplog.crypto.aggregate_chain import BEGINNING, ChainHead, follows
from oplog.store.rows import Link
from oplog.upkeep.problem import ArchiveProblem, ProblemKind

_SHORT = 8


class Continuity:
    """Segments in the order of their sequences, from `first` on.

    `wanted` are sequences whose chain is asked for later. A branch begins after the chain
    `cut_chain`, maybe within its first segment. With `links`, records of each aggregate are held
    to each other.
    """

    def __init__(
        self,
        log_id: UUID,
        *,
        note: Callable[[ArchiveProblem], None],
        first: int,
        wanted: Collection[int] = (),
        cut_chain: bytes | None = None,
        links: bool = False,
    ) -> None:
        self._log_id = log_id
        self._note = note
        self._wanted = wanted
        self._cut_chain = cut_chain
        self._links = links
        self._whole = first == 1
        self._next = first
        self._fresh = True
        self._chain: bytes | None = start_chain(log_id) if first == 1 else None
        self._chains: dict[int, bytes] = {0: start_chain(log_id)}
        self._newest: dict[bytes, ChainHead] = {}

    def find_chain(self, sequence: int) -> bytes | None:
        """The chain after a wanted sequence; None if it was not met."""
        return self._chains.get(sequence)

    def add(self, item: Item, segment: Segment | None) -> None:
        """The next segment; None if it is damaged or was not read."""
        self._check_place(item)
        if segment is None:
            self._forget()
        else:
            self._check_segment(item, segment)
        self._chain = item.chain
        if item.last in self._wanted:
            self._chains[item.last] = item.chain
        self._next = item.last + 1
        self._fresh = False

    def finish(self, last: int, chain: bytes | None) -> None:
        """Hold what was met to where it must end."""
        if self._next != last + 1:
            self._note(
                ArchiveProblem(
                    "",
                    ProblemKind.GAP,
                    f"sequences {self._next} to {last} were not met",
                    self._next,
                )
            )
        elif chain is not None and self._chain not in (None, chain):
            self._note(
                ArchiveProblem("", ProblemKind.CHAIN, f"the chain after {last} is another", last)
            )

    def _check_place(self, item: Item) -> None:
        if item.first == self._next:
            return
        if self._fresh and item.first < self._next <= item.last:
            self._chain = None
            return
        self._note(
            ArchiveProblem(
                item.path,
                ProblemKind.GAP,
                f"{item.path} begins at sequence {item.first}, after {self._next - 1}",
                self._next,
            )
        )
        self._chain = None
        self._forget()

    def _forget(self) -> None:
        """What follows is not held to what could not be read."""
        self._newest.clear()
        self._whole = False

    def _check_segment(self, item: Item, segment: Segment) -> None:
        header = segment.header
        if header.log_id != self._log_id:
            self._accuse(item, ProblemKind.INVALID, f"is of the log {header.log_id}")
        before = self._chain
        if item.first == 1:
            before = start_chain(self._log_id)
        if before is not None and header.chain_before != before:
            self._accuse(item, ProblemKind.CHAIN, "does not continue the chain before it")
        for sequence in self._wanted:
            if item.first - 1 <= sequence < item.last and sequence:
                within = segment.records[: sequence - item.first + 1]
                found = extend_chain(header.chain_before, within, first=item.first)
                self._chains[sequence] = found
        if self._cut_chain is not None and self._fresh:
            within = segment.records[: self._next - item.first]
            found = extend_chain(header.chain_before, within, first=item.first)
            if found != self._cut_chain:
                self._accuse(item, ProblemKind.CHAIN, "does not begin where its branch was left")
        if self._links:
            self._check_links(item, segment)

    def _check_links(self, item: Item, segment: Segment) -> None:
        for record in segment.records:
            for link in record.list_links():
                self._check_link(item, link)

    def _check_link(self, item: Item, link: Link) -> None:
        key = sha256(link.aggregate.encode()).digest()[:_SHORT]
        before = self._newest.get(key)
        if before is None:
            fits = not self._whole or follows(
                BEGINNING, version=link.version, prev_hash=link.prev_hash
            )
        else:
            fits = follows(before, version=link.version, prev_hash=link.prev_hash[:_SHORT])
        if not fits:
            self._accuse(
                item,
                ProblemKind.CHAIN,
                f"holds position {link.position} (aggregate {link.aggregate!r:.80} version "
                f"{link.version}), which does not follow version {(before or BEGINNING).version}",
            )
        self._newest[key] = ChainHead(link.version, link.record_hash[:_SHORT])

    def _accuse(self, item: Item, what: ProblemKind, why: str) -> None:
        self._note(ArchiveProblem(item.path, what, f"{item.path} {why}", item.first))
