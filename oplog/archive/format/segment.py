r"""Segments: a run of sealed entries in the order of their sequence.

Sealed bytes pass as they are. Once the body is decoded, everything that the header claims is
compared with it.

    chain of nothing  = sha256('oplog/v1/archive\0' || log id)
    chain of an entry = sha256('oplog/v1/sequence\0' || chain before || sequence || position
                               || transaction position || entry hash)       numbers in 8 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from msgspec import Meta, field

from oplog.archive.format.body import MAX_ENTRIES, Pairs, decode_body, encode_body
from oplog.archive.format.canonical_json import (
    Document,
    Flag,
    Format,
    Moment,
    Natural,
    Positive,
    Sha256Text,
    list_members,
    read_document,
)
from oplog.archive.format.container import (
    MAX_HEADER_BYTES,
    compress,
    corrupt,
    decode_container,
    decompress,
    encode_container,
)
from oplog.errors import DecodeError, EntryError
from oplog.schema.guard import ADOPTION_PREFIX
from oplog.store.rows import StoredEntry, write_microseconds

MAGIC = b"oplogseg"
MAX_BODY_BYTES = 48 * 1024 * 1024
"""Largest body before compression: a full segment, and one entry of the largest size."""
_NUMBERS = struct.Struct(">qqq")
_START_LABEL = b"oplog/v1/archive\0"
_CHAIN_LABEL = b"oplog/v1/sequence\0"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself without its body being read.

    `first` to `last` are sequences. `missing` counts the entries of its last transaction that
    are in the segments after it: 0 but for transactions larger than a segment. `adopted`
    says that there are entries of rows that existed before the log did.
    """

    log_id: UUID
    generation: int
    first: int
    last: int
    transactions: int
    missing: int
    chain_before: bytes
    chain: bytes
    first_position: int
    last_position: int
    first_recorded: int
    last_recorded: int
    body_bytes: int
    adopted: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A decoded segment: entries in the order of their sequence, which begins at its first.

    `metadata` is by transaction position; the one of a transaction that began in an earlier
    segment is there.
    """

    header: SegmentHeader
    entries: Sequence[StoredEntry]
    metadata: Mapping[int, Pairs]


def start_chain(log_id: UUID) -> bytes:
    """The chain of an archive that holds no entry yet."""
    return sha256(_START_LABEL + log_id.bytes).digest()


def extend_chain(chain: bytes, entries: Iterable[StoredEntry], *, first: int) -> bytes:
    """The chain after `entries`, which begin with sequence `first`."""
    for sequence, entry in enumerate(entries, first):
        numbers = _NUMBERS.pack(sequence, entry.position, entry.transaction_position)
        chain = sha256(b"".join((_CHAIN_LABEL, chain, numbers, entry.entry_hash))).digest()
    return chain


# -- encoding -----------------------------------------------------------------------------


def encode_segment(
    entries: Sequence[StoredEntry],
    metadata: Mapping[int, Pairs],
    *,
    log_id: UUID,
    generation: int,
    first: int,
    chain_before: bytes,
    missing: int = 0,
) -> tuple[bytes, SegmentHeader]:
    """The object's bytes and its header; the same entries always give the same bytes.

    `entries` are sorted by (transaction position, position), and only the first and the last
    transaction may be in other segments as well; `missing` entries of the last one are.
    """
    body = b"".join(encode_body(entries, metadata))
    if len(body) > MAX_BODY_BYTES or len(entries) > MAX_ENTRIES:
        raise corrupt("a segment to be written", f"{len(entries)} entries have {len(body)} bytes")
    recorded = [write_microseconds(entry.recorded_at) for entry in entries]
    positions = [entry.position for entry in entries]
    header = SegmentHeader(
        log_id=log_id,
        generation=generation,
        first=first,
        last=first + len(entries) - 1,
        transactions=len({entry.transaction_position for entry in entries}),
        missing=missing,
        chain_before=chain_before,
        chain=extend_chain(chain_before, entries, first=first),
        first_position=min(positions),
        last_position=max(positions),
        first_recorded=min(recorded),
        last_recorded=max(recorded),
        body_bytes=len(body),
        adopted=_find_adopted(entries),
    )
    return encode_container(MAGIC, _write_header(header), body=compress(body)), header


def _find_adopted(entries: Iterable[StoredEntry]) -> bool:
    return any(entry.aggregate.startswith(ADOPTION_PREFIX) for entry in entries)


# Limits stand in aliases, which are evaluated now: msgspec looks at annotations when it first
# decodes.
_Transactions: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_ENTRIES)]
_BodyBytes: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_BODY_BYTES)]


class HeaderJson(Document, frozen=True, tag=1, tag_field="format"):
    """A segment's header, in format 1."""

    log_id: UUID = field(name="log")
    generation: Natural
    first: Positive
    last: Positive
    transactions: _Transactions
    missing: Natural
    chain_before: Sha256Text
    chain: Sha256Text
    first_position: Positive
    last_position: Positive
    first_recorded: Moment
    last_recorded: Moment
    body_bytes: _BodyBytes
    adopted: Flag


def _write_header(header: SegmentHeader) -> HeaderJson:
    changed: dict[str, Any] = {
        "chain_before": header.chain_before.hex(),
        "chain": header.chain.hex(),
        "adopted": int(header.adopted),
    }
    return HeaderJson(**list_members(header, HeaderJson) | changed)


# -- decoding -----------------------------------------------------------------------------


def _read_header(document: HeaderJson, what: str) -> SegmentHeader:
    changed = {
        "chain_before": bytes.fromhex(document.chain_before),
        "chain": bytes.fromhex(document.chain),
        "adopted": bool(document.adopted),
    }
    header = SegmentHeader(**list_members(document, HeaderJson) | changed)
    if not header.transactions <= header.last - header.first + 1 <= MAX_ENTRIES:
        raise corrupt(what, f"it claims sequences {header.first} to {header.last}")
    return header


SEGMENT_FORMATS: Mapping[int, Format[Any, SegmentHeader]] = MappingProxyType(
    {1: Format(HeaderJson, _read_header)}
)
"""How headers of each format are read."""


def decode_segment(data: bytes, *, what: str = "a segment") -> Segment:
    """The inverse of `encode_segment`.

    Hashes that were left out are computed, and the chain is computed again and compared: what
    is returned is what was encoded. Raises `SegmentCorruptError`, `ManifestInvalidError`.
    """
    container = decode_container(data, MAGIC, what=what)
    header = read_document(container.header, SEGMENT_FORMATS, most=MAX_HEADER_BYTES, what=what)
    body = decompress(container.body, size=header.body_bytes, most=MAX_BODY_BYTES, what=what)
    try:
        entries, metadata = decode_body(body, what, most=header.last - header.first + 1)
        _check_claims(header, entries, what)
    except (DecodeError, EntryError, OverflowError, ValueError, struct.error) as cause:
        raise corrupt(what, f"its entries cannot be read: {cause}") from cause
    return Segment(header, entries, metadata)


def _check_claims(header: SegmentHeader, entries: Sequence[StoredEntry], what: str) -> None:
    """Hold the header to what the body has."""
    claimed = header.last - header.first + 1
    if len(entries) != claimed:
        raise corrupt(what, f"it claims {claimed} entries and holds {len(entries)}")
    positions = [entry.position for entry in entries]
    recorded = [write_microseconds(entry.recorded_at) for entry in entries]
    found = (
        len({entry.transaction_position for entry in entries}),
        min(positions),
        max(positions),
        min(recorded),
        max(recorded),
        extend_chain(header.chain_before, entries, first=header.first),
        _find_adopted(entries),
    )
    said = (
        header.transactions,
        header.first_position,
        header.last_position,
        header.first_recorded,
        header.last_recorded,
        header.chain,
        header.adopted,
    )
    if found != said:
        raise corrupt(what, "its header does not say what its entries say")
