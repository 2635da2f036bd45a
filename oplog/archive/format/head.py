"""Heads: the one thing that says what an archive holds.

Pure: a head to canonical JSON and back. Heads are numbered and created where none is, so that
of two writers one wins; each names the one before it by its hash. The hard thing is that all
that belongs together changes together: segments, the place in the database, snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import UUID

from oplog.archive.format.canonical_json import Fields, decode_document, encode_document, invalid
from oplog.archive.format.index import Levels, read_levels, write_levels
from oplog.archive.format.path import BLOB, MINT_BITS, SNAPSHOT, parse_content
from oplog.archive.format.segment import start_chain

FORMAT = 1
MAX_HEAD_BYTES = 1024 * 1024
MAX_SNAPSHOTS = 1000
MAX_BRANCHES = 100
_DIGEST = "sha256"


@dataclass(frozen=True, slots=True)
class HeadLink:
    """The head before: its number and the SHA-256 of its bytes."""

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """The database that was read: which one of which server, in which of its histories.

    The archive is its own: another one publishes here only where it is to take its place.
    """

    system_identifier: str
    timeline: int
    database: int


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """A snapshot that can be restored from.

    The tables after `sequence`, the highest position of which is `position`; `recorded_at` in
    microseconds since 1970, `size_bytes` of all that it consists of.
    """

    path: str
    sequence: int
    position: int
    recorded_at: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TypesRef:
    """The types and the key check values of the log: `types` rows and `keys` rows."""

    path: str
    types: int
    keys: int


@dataclass(frozen=True, slots=True)
class Branch:
    """Entries that were published and that the database no longer had.

    They follow `sequence` (whose chain is `chain`) in `generation`, and end at `last`. `head`
    was the last that had them. `levels` hold their segments, the first of which may begin before.
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
    describe the last entry. `cursor` is the place in the database that was read up to: for
    information, since only the database's own row says where to go on. `first_sequence` is the
    oldest that is promised to be here. `horizon` is the lowest mint that somebody may still be
    about to use.
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

    @property
    def fork(self) -> Branch | None:
        """The branch that this generation left; None in the first one."""
        return self.branches[-1] if self.branches else None

    def encode(self) -> bytes:
        """The head's bytes; `ManifestInvalidError` for a head that could not be read back."""
        document = _write_head(self)
        document[_DIGEST] = _digest_document(document)
        data = encode_document(document)
        what = f"head {self.number}, to be written,"
        # An archive whose newest head is not accepted is lost to everybody.
        if decode_head(data, what=what) != self:
            raise invalid(what, "it does not read back as it was written")
        return data

    def link(self) -> HeadLink:
        """What the head after this one names it by."""
        return HeadLink(self.number, sha256(self.encode()).digest())

    def same_content(self, other: Head) -> bool:
        """Whether both say the same of the log, whoever published them and when."""
        neutral = {"number": 0, "nonce": "", "previous": None, "epoch": 0, "writer": ""}
        neutral |= {"horizon": 0, "created_at": 0}
        return replace(self, **neutral) == replace(other, **neutral)  # type: ignore[arg-type]


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


def decode_head(data: bytes, *, what: str) -> Head:
    """The inverse of `Head.encode`; `ManifestInvalidError` for anything else."""
    document = decode_document(data, most=MAX_HEAD_BYTES, what=what)
    fields = Fields(document, what)
    fields.take_format(FORMAT)
    if fields.take(_DIGEST) != _digest_document(document):
        raise invalid(what, "it does not have the SHA-256 that it gives for itself")
    head = Head(
        number=fields.take_integer("number", least=1),
        nonce=fields.take_text("id", most=64),
        previous=_read_link(fields.take("previous"), what),
        archive_id=_read_uuid(fields.take_text("archive", most=36), what),
        log_id=_read_uuid(fields.take_text("log", most=36), what),
        generation=fields.take_integer("generation"),
        epoch=fields.take_integer("epoch"),
        writer=fields.take_text("writer", most=200),
        origin=_read_origin(fields.take("origin"), what),
        cursor=fields.take_optional_text("cursor", most=32 * 1024),
        sequence=fields.take_integer("sequence"),
        chain=fields.take_hash("chain"),
        position=fields.take_integer("position"),
        recorded_at=fields.take_integer("recorded_at", least=-(1 << 62)),
        first_sequence=fields.take_integer("first_sequence", least=1),
        horizon=fields.take_integer("horizon"),
        created_at=fields.take_integer("created_at"),
        levels=read_levels(fields.take("segments"), what=what),
        types=_read_types(fields.take("types"), what),
        snapshots=tuple(
            _read_snapshot(one, what) for one in fields.take_list("snapshots", most=MAX_SNAPSHOTS)
        ),
        branches=tuple(
            _read_branch(one, what) for one in fields.take_list("branches", most=MAX_BRANCHES)
        ),
    )
    fields.finish()
    _check_head(head, what)
    return head


def _digest_document(document: Mapping[str, Any]) -> str:
    """SHA-256 of a head without this very member.

    Nothing else vouches for the newest head: it has no hash in its name, and no head after it.
    """
    rest = {name: value for name, value in document.items() if name != _DIGEST}
    return sha256(encode_document(rest)).hexdigest()


def _check_head(head: Head, what: str) -> None:
    """Hold the members to each other."""
    items = [item for row in reversed(head.levels) for item in row]
    last = items[-1] if items else None
    if head.sequence == 0 and head.chain != start_chain(head.log_id):
        raise invalid(what, "it holds nothing, and its chain is not the one of nothing")
    if last is None:
        if head.sequence >= head.first_sequence:
            raise invalid(what, f"it claims sequence {head.sequence} and names no segment")
    elif (last.last, last.chain, last.missing) != (head.sequence, head.chain, 0):
        raise invalid(what, f"it claims sequence {head.sequence}, its segments end at {last.last}")
    elif items[0].first > head.first_sequence:
        raise invalid(what, f"its segments begin after sequence {head.first_sequence}")
    # Writers that no store keeps apart number their heads by epoch.
    if head.previous is None and 1 < head.number < 1 << MINT_BITS:
        raise invalid(what, "it names no predecessor")
    if head.previous is not None and head.previous.number >= head.number:
        raise invalid(what, f"it follows head {head.previous.number}")
    sequences = [snapshot.sequence for snapshot in head.snapshots]
    if sequences != sorted(set(sequences)) or (sequences and sequences[-1] > head.sequence):
        raise invalid(what, "its snapshots are not in order")


# -- members ------------------------------------------------------------------------------


def _write_head(head: Head) -> dict[str, Any]:
    link, types = head.previous, head.types
    return {
        "format": FORMAT,
        "number": head.number,
        "id": head.nonce,
        "previous": link and {"number": link.number, "sha256": link.digest.hex()},
        "archive": str(head.archive_id),
        "log": str(head.log_id),
        "generation": head.generation,
        "epoch": head.epoch,
        "writer": head.writer,
        "origin": {
            "system_identifier": head.origin.system_identifier,
            "timeline": head.origin.timeline,
            "database": head.origin.database,
        },
        "cursor": head.cursor,
        "sequence": head.sequence,
        "chain": head.chain.hex(),
        "position": head.position,
        "recorded_at": head.recorded_at,
        "first_sequence": head.first_sequence,
        "horizon": head.horizon,
        "created_at": head.created_at,
        "segments": write_levels(head.levels),
        "types": types and {"path": types.path, "types": types.types, "keys": types.keys},
        "snapshots": [
            {
                "path": one.path,
                "sequence": one.sequence,
                "position": one.position,
                "recorded_at": one.recorded_at,
                "bytes": one.size_bytes,
            }
            for one in head.snapshots
        ],
        "branches": [
            {
                "generation": one.generation,
                "sequence": one.sequence,
                "chain": one.chain.hex(),
                "last": one.last,
                "head": one.head,
                "segments": write_levels(one.levels),
            }
            for one in head.branches
        ],
    }


def _read_link(document: Any, what: str) -> HeadLink | None:
    if document is None:
        return None
    fields = Fields(document, what)
    link = HeadLink(fields.take_integer("number", least=1), fields.take_hash("sha256"))
    fields.finish()
    return link


def _read_origin(document: Any, what: str) -> Origin:
    fields = Fields(document, what)
    origin = Origin(
        fields.take_text("system_identifier", most=40),
        fields.take_integer("timeline"),
        fields.take_integer("database"),
    )
    fields.finish()
    return origin


def _read_types(document: Any, what: str) -> TypesRef | None:
    if document is None:
        return None
    fields = Fields(document, what)
    found = TypesRef(
        fields.take_text("path", most=120),
        fields.take_integer("types"),
        fields.take_integer("keys"),
    )
    fields.finish()
    parse_content(found.path, BLOB, what=what)
    return found


def _read_snapshot(document: Any, what: str) -> SnapshotRef:
    fields = Fields(document, what)
    found = SnapshotRef(
        path=fields.take_text("path", most=120),
        sequence=fields.take_integer("sequence"),
        position=fields.take_integer("position"),
        recorded_at=fields.take_integer("recorded_at", least=-(1 << 62)),
        size_bytes=fields.take_integer("bytes"),
    )
    fields.finish()
    if parse_content(found.path, SNAPSHOT, what=what).number != found.sequence:
        raise invalid(what, f"{found.path} is not named by sequence {found.sequence}")
    return found


def _read_branch(document: Any, what: str) -> Branch:
    fields = Fields(document, what)
    found = Branch(
        generation=fields.take_integer("generation"),
        sequence=fields.take_integer("sequence"),
        chain=fields.take_hash("chain"),
        last=fields.take_integer("last"),
        head=fields.take_integer("head", least=1),
        levels=read_levels(fields.take("segments"), what=what),
    )
    fields.finish()
    return found


def _read_uuid(text: str, what: str) -> UUID:
    try:
        found = UUID(text)
    except ValueError as cause:
        raise invalid(what, f"{text!r} in it is no UUID") from cause
    if str(found) != text:
        raise invalid(what, f"{text!r} in it is no UUID")
    return found
