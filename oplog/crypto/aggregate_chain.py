"""Whether the records of each aggregate follow one another: versions by one, and hashes.

The one place in Python that says so; `oplog.store.links` says it in SQL. Whether a record's hash
is that of its bytes is another question, which `hashing` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from oplog.crypto.hashing import ZERO_HASH
from oplog.errors import ChainBrokenError


class ChainHead(NamedTuple):
    """The newest record of an aggregate, as far as the next one depends on it."""

    version: int
    record_hash: bytes


BEGINNING = ChainHead(0, ZERO_HASH)
"""What the first record of an aggregate follows."""


class ChainLink(Protocol):
    """A record as a link in the chain of one aggregate."""

    @property
    def position(self) -> int:
        """Its place in the log's tables, by which an error names it."""
        ...

    @property
    def aggregate(self) -> str:
        """The aggregate's name."""
        ...

    @property
    def version(self) -> int:
        """Counts the aggregate's records, from 1."""
        ...

    @property
    def prev_hash(self) -> bytes:
        """The hash of the aggregate's record before."""
        ...

    @property
    def record_hash(self) -> bytes:
        """The record's own hash."""
        ...


def follows(before: ChainHead, *, version: int, prev_hash: bytes) -> bool:
    """Whether a record with this version and link comes right after `before`."""
    return version == before.version + 1 and prev_hash == before.record_hash


class ChainCheck:
    """Holds the links that it is fed to the ones before, aggregate by aggregate.

    With `whole`, the first link of an aggregate must be its version 1; else it may be any, as in
    a log whose beginning is not kept. `heads` are records that are known to come before.
    """

    def __init__(self, *, whole: bool = True, heads: Mapping[str, ChainHead] | None = None) -> None:
        self._whole = whole
        self._heads = dict(heads or {})

    def find_break(self, link: ChainLink) -> ChainHead | None:
        """Take the next link; what it should have followed, None if it does.

        Either way the link is what the next one of its aggregate has to follow.
        """
        before = self._heads.get(link.aggregate)
        self._heads[link.aggregate] = ChainHead(link.version, link.record_hash)
        if before is None:
            if not self._whole:
                return None
            before = BEGINNING
        fits = follows(before, version=link.version, prev_hash=link.prev_hash)
        return None if fits else before

    def require(self, links: Iterable[ChainLink], *, hint: str) -> None:
        """`find_break` of each, and `ChainBrokenError` if one does not follow."""
        for link in links:
            before = self.find_break(link)
            if before is not None:
                raise ChainBrokenError(
                    f"position {link.position} (aggregate {link.aggregate!r} version "
                    f"{link.version}) does not follow version {before.version}",
                    hint=hint,
                )

    def finish(self, *, hint: str) -> None:
        """Nothing: what the links begin with was checked first."""


class BackwardCheck:
    """The same for links that come newest first: each has to be what the newer one follows.

    With `whole`, `finish` holds the oldest link of each aggregate to being its version 1.
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._expected: dict[str, tuple[ChainHead, ChainLink]] = {}
        """By aggregate, what comes before the oldest link, and that link."""

    def require(self, links: Iterable[ChainLink], *, hint: str) -> None:
        """Take the next links; `ChainBrokenError` if a newer one does not follow one of them."""
        for link in links:
            known = self._expected.get(link.aggregate)
            if known is not None and known[0] != (link.version, link.record_hash):
                raise _refuse(known[1], known[0], hint)
            before = ChainHead(link.version - 1, link.prev_hash)
            self._expected[link.aggregate] = before, link

    def finish(self, *, hint: str) -> None:
        """After the last link; `ChainBrokenError` where older ones are missing."""
        for before, link in self._expected.values():
            if self._whole and before != BEGINNING:
                raise _refuse(link, before, hint)


def make_chain(*, back: bool, whole: bool) -> ChainCheck | BackwardCheck:
    """The check for one direction; with `whole`, the aggregates' beginnings are among the links."""
    return BackwardCheck(whole=whole) if back else ChainCheck(whole=whole)


def _refuse(link: ChainLink, before: ChainHead, hint: str) -> ChainBrokenError:
    return ChainBrokenError(
        f"position {link.position} (aggregate {link.aggregate!r} version {link.version}) follows "
        f"version {before.version}, which is not there as it was",
        hint=hint,
    )
