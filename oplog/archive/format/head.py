"""Heads: the documents that say what an archive holds.

A head is created under a number that is not taken, so that one of two writers wins, and names the
one before it by its hash. Segments, the place in the database and snapshots change together,
because one head names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from oplog.archive.format.canonical_json import (
    Document,
    Format,
    Moment,
    Natural,
    PathText,
    Positive,
    PublicKeyText,
    Sha256Text,
    SignatureText,
    encode_document,
    invalid,
    read_document,
)
from oplog.archive.format.index import Levels, LevelsJson, read_levels, write_levels
from oplog.archive.format.path import BLOB, MINT_BITS, SNAPSHOT, parse_content
from oplog.archive.format.segment import start_chain
from oplog.crypto.signing import is_head_signed
from oplog.errors import SignatureInvalidError

MAX_HEAD_BYTES = 1024 * 1024
MAX_SNAPSHOTS = 1000
MAX_BRANCHES = 100
MAX_ENDORSEMENTS = 16
"""Replaced keys that the newest one's chain begins with at most; readers pin a newer one then."""


@dataclass(frozen=True, slots=True)
class HeadLink:
    """The head before: its number and the SHA-256 of its bytes."""

    number: int
    digest: bytes


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """The database that was read: its server, its number there, and the server's timeline.

    The archive belongs to it. Another database publishes here only to replace it.
    """

    system_identifier: Annotated[str, Meta(max_length=40)]
    timeline: Natural
    database: Natural


class SnapshotRef(Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot that can be restored from.

    It has the tables after `sequence`; the highest position up to there is `position`.
    `recorded_at` is in microseconds since 1970, `size_bytes` the size of all its objects.
    """

    path: PathText
    sequence: Natural
    position: Natural
    recorded_at: Moment
    size_bytes: Natural = msgspec.field(name="bytes")


class TypesRef(Struct, frozen=True, forbid_unknown_fields=True):
    """The types and the key check values of the log: `types` rows and `keys` rows."""

    path: PathText
    types: Natural
    keys: Natural


class Endorsement(Struct, frozen=True, forbid_unknown_fields=True):
    """What a publisher's key says of the one that takes its place: `by` signs `publisher`."""

    by: PublicKeyText
    publisher: PublicKeyText
    signature: SignatureText


@dataclass(frozen=True, slots=True)
class Branch:
    """Records that were published and that the database no longer had.

    They follow `sequence` (whose chain is `chain`) in `generation`, and end at `last`. `head`
    was the last that had them. `levels` hold their segments; the first may begin before.
    """

    generation: int
    sequence: int
    chain: bytes
    last: int
    head: int
    levels: Levels


@dataclass(frozen=True, slots=True)
class Head:
    """Everything an archive holds, as of one publication.

    `sequence`, `chain`, `position` (the highest) and `recorded_at` (microseconds, the highest)
    describe the last record. `cursor` is the place in the database that was read up to: for
    information, since only the database's own row says where to go on. `first_sequence` is the
    oldest that is promised to be here. `horizon` is the lowest number of a blob that a writer may
    still be about to use. `publisher` is the key that signed all of this, None where nobody did;
    `endorsements` lead to it from the keys that it replaced, oldest first.
    """

    number: int
    nonce: str
    previous: HeadLink | None
    archive_id: UUID
    log_id: UUID
    generation: int
    epoch: int
    writer: str
    origin: Origin
    cursor: str | None
    sequence: int
    chain: bytes
    position: int
    recorded_at: int
    first_sequence: int
    horizon: int
    created_at: int
    levels: Levels = ((),)
    types: TypesRef | None = None
    snapshots: tuple[SnapshotRef, ...] = ()
    branches: tuple[Branch, ...] = field(default=())
    publisher: str | None = None
    signature: str | None = None
    endorsements: tuple[Endorsement, ...] = ()

    @property
    def fork(self) -> Branch | None:
        """The branch that this generation left; None in the first one."""
        return self.branches[-1] if self.branches else None

    def encode(self) -> bytes:
        """The head's bytes; `ManifestInvalidError` for a head that could not be read back."""
        data = encode_document(_write_head(self))
        what = f"head {self.number}, to be written,"
        # An archive whose newest head is not accepted is lost to everybody.
        if decode_head(data, what=what) != self:
            raise invalid(what, "it does not read back as it was written")
        return data

    def link(self) -> HeadLink:
        """What the head after this one names it by."""
        return HeadLink(self.number, sha256(self.encode()).digest())


def make_first(archive_id: UUID, log_id: UUID, origin: Origin) -> Head:
    """What an archive without any head holds: nothing. Never published itself."""
    return Head(
        number=0,
        nonce="",
        previous=None,
        archive_id=archive_id,
        log_id=log_id,
        generation=0,
        epoch=0,
        writer="",
        origin=origin,
        cursor=None,
        sequence=0,
        chain=start_chain(log_id),
        position=0,
        recorded_at=0,
        first_sequence=1,
        horizon=0,
        created_at=0,
    )


class LinkJson(Document, frozen=True):
    """How a head names the one before it."""

    number: Positive
    sha256: Sha256Text


class BranchJson(Document, frozen=True):
    """A branch as it stands in a head."""

    generation: Natural
    sequence: Natural
    chain: Sha256Text
    last: Natural
    head: Positive
    segments: LevelsJson


class HeadJson(Document, frozen=True, tag=1, tag_field="format"):
    """A head, in format 1.

    `sha256` is that of the document without this very member; `signature` is over the document
    without both.
    """

    number: Positive
    nonce: Annotated[str, Meta(max_length=64)] = msgspec.field(name="id")
    previous: LinkJson | None
    archive_id: UUID = msgspec.field(name="archive")
    log_id: UUID = msgspec.field(name="log")
    generation: Natural
    epoch: Natural
    writer: Annotated[str, Meta(max_length=200)]
    origin: Origin
    cursor: Annotated[str, Meta(max_length=32 * 1024)] | None
    sequence: Natural
    chain: Sha256Text
    position: Natural
    recorded_at: Moment
    first_sequence: Positive
    horizon: Natural
    created_at: Natural
    segments: LevelsJson
    types: TypesRef | None
    snapshots: Annotated[tuple[SnapshotRef, ...], Meta(max_length=MAX_SNAPSHOTS)]
    branches: Annotated[tuple[BranchJson, ...], Meta(max_length=MAX_BRANCHES)]
    publisher: PublicKeyText | None
    signature: SignatureText | None
    endorsements: Annotated[tuple[Endorsement, ...], Meta(max_length=MAX_ENDORSEMENTS)]
    sha256: Sha256Text


def decode_head(data: bytes, *, what: str) -> Head:
    """The inverse of `Head.encode`; `ManifestInvalidError` for anything else."""
    return read_document(data, HEAD_FORMATS, most=MAX_HEAD_BYTES, what=what)


def _digest_document(document: HeadJson) -> str:
    """SHA-256 of a head without this very member.

    It finds damage. Who can write heads can compute it, too: against that there is a signature.
    """
    return sha256(_encode_without(document, "sha256")).hexdigest()


def _encode_without(document: HeadJson, *members: str) -> bytes:
    rest = msgspec.to_builtins(document)
    return encode_document({name: rest[name] for name in rest if name not in members})


def sign_head(head: Head, publisher: str, sign: Callable[[bytes], str]) -> Head:
    """The head with the signature of `publisher` over everything else in it."""
    named = replace(head, publisher=publisher, signature=None)
    return replace(named, signature=sign(_encode_signed(_write_head(named))))


def _encode_signed(document: HeadJson) -> bytes:
    return _encode_without(document, "sha256", "signature")


def _check_signature(document: HeadJson, what: str) -> None:
    """Whether the key that the head names has signed it; not whether that key is trusted."""
    if document.publisher is None or document.signature is None:
        if document.publisher or document.signature or document.endorsements:
            raise invalid(what, "it names a publisher or a signature, and not both")
        return
    links = document.endorsements
    ways = [(a.publisher, b.by) for a, b in pairwise(links)]
    ways += [(links[-1].publisher, document.publisher)] if links else []
    if any(reached != goes_on for reached, goes_on in ways):
        raise invalid(what, "its endorsements do not lead to its publisher")
    if not is_head_signed(document.publisher, _encode_signed(document), document.signature):
        raise SignatureInvalidError(
            f"{what} does not have the signature of the publisher that it names, "
            f"{document.publisher}",
            hint="it was altered or forged: bring the original back from the bucket's versions, "
            "or run oplog resync, which publishes over it",
        )


def _check_head(head: Head, what: str) -> None:
    """Hold the members to each other."""
    items = [item for row in reversed(head.levels) for item in row]
    last = items[-1] if items else None
    if head.sequence == 0 and head.chain != start_chain(head.log_id):
        raise invalid(what, "it holds nothing, and its chain is not the one of nothing")
    if last is None:
        if head.sequence >= head.first_sequence:
            raise invalid(what, f"it claims sequence {head.sequence} and names no segment")
    elif (last.last, last.chain) != (head.sequence, head.chain):
        raise invalid(what, f"it claims sequence {head.sequence}, its segments end at {last.last}")
    elif items[0].first > head.first_sequence:
        raise invalid(what, f"its segments begin after sequence {head.first_sequence}")
    before = 0 if head.previous is None else head.previous.number
    # Writers that no store keeps apart begin to number their heads anew with each epoch.
    begins = head.number & (1 << MINT_BITS) - 1 == 1 and before >> MINT_BITS < head.epoch
    if head.number != before + 1 and not (begins and head.number >> MINT_BITS == head.epoch):
        raise invalid(what, f"it follows head {before}" if before else "it names no predecessor")
    sequences = [snapshot.sequence for snapshot in head.snapshots]
    if sequences != sorted(set(sequences)) or (sequences and sequences[-1] > head.sequence):
        raise invalid(what, "its snapshots are not in order")


def _check_refs(head: Head, what: str) -> None:
    """Hold the names of what a head refers to against what it says of it."""
    if head.types is not None:
        parse_content(head.types.path, BLOB, what=what)
    for snapshot in head.snapshots:
        if parse_content(snapshot.path, SNAPSHOT, what=what).number != snapshot.sequence:
            raise invalid(what, f"{snapshot.path} is not named by sequence {snapshot.sequence}")


# -- format 1 -----------------------------------------------------------------------------

_SAME_MEMBERS = tuple(
    name
    for name in HeadJson.__struct_fields__
    if name not in {"previous", "chain", "segments", "branches", "sha256"}
)
"""Members of a head that are spelled as the head has them."""


def _write_head(head: Head) -> HeadJson:
    link = head.previous
    document = HeadJson(
        **{name: getattr(head, name) for name in _SAME_MEMBERS},
        previous=None if link is None else LinkJson(number=link.number, sha256=link.digest.hex()),
        chain=head.chain.hex(),
        segments=write_levels(head.levels),
        branches=tuple(_write_branch(branch) for branch in head.branches),
        sha256="",
    )
    return msgspec.structs.replace(document, sha256=_digest_document(document))


def _read_head(document: HeadJson, what: str) -> Head:
    if document.sha256 != _digest_document(document):
        raise invalid(what, "it does not have the SHA-256 that it gives for itself")
    _check_signature(document, what)
    link = document.previous
    head = Head(
        **{name: getattr(document, name) for name in _SAME_MEMBERS},
        previous=None if link is None else HeadLink(link.number, bytes.fromhex(link.sha256)),
        chain=bytes.fromhex(document.chain),
        levels=read_levels(document.segments, what=what),
        branches=tuple(_read_branch(branch, what) for branch in document.branches),
    )
    _check_refs(head, what)
    _check_head(head, what)
    return head


def _write_branch(branch: Branch) -> BranchJson:
    return BranchJson(
        generation=branch.generation,
        sequence=branch.sequence,
        chain=branch.chain.hex(),
        last=branch.last,
        head=branch.head,
        segments=write_levels(branch.levels),
    )


def _read_branch(document: BranchJson, what: str) -> Branch:
    return Branch(
        generation=document.generation,
        sequence=document.sequence,
        chain=bytes.fromhex(document.chain),
        last=document.last,
        head=document.head,
        levels=read_levels(document.segments, what=what),
    )


HEAD_FORMATS: Mapping[int, Format[Any, Head]] = MappingProxyType({1: Format(HeadJson, _read_head)})
"""How heads of each format are read."""
