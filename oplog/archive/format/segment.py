r"""Segments: a run of sealed records in the order of their sequence.

Sealed bytes pass as they are. Once the body is decoded, everything that the header claims is
compared with it.

    chain of nothing  = sha256('oplog/v1/archive\0' || log id)
    chain of a record = sha256('oplog/v1/sequence\0' || chain before || sequence || position
                               || record hash)                              numbers in 8 bytes
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

from oplog.archive.format.body import MAX_RECORDS, decode_body, encode_body
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
from oplog.schema.mark_names import ADOPTION_PREFIX
from oplog.store.quarantined import is_quarantine_mark
from oplog.store.rows import StoredRecord, write_microseconds

MAGIC = b"oplogseg"
MAX_BODY_BYTES = 256 * 1024 * 1024
"""Largest body before compression: a full segment, and one record of the largest size.

That is 16 MiB, `oplog.entry.MAX_RECORD_BYTES`, and the rest for what is not sealed: names of
aggregates, their versions and hashes, metadata.
"""
_NUMBERS = struct.Struct(">qq")
_START_LABEL = b"oplog/v1/archive\0"
_CHAIN_LABEL = b"oplog/v1/sequence\0"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself without its body being read.

    `first` to `last` are sequences. `adopted` says that there are records of rows that existed
    before the log did, or marks of records that are quarantined.
    """

    log_id: UUID
    generation: int
    first: int
    last: int
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
    """A decoded segment: records in the order of their sequence, which begins at its first."""

    header: SegmentHeader
    records: Sequence[StoredRecord]


def start_chain(log_id: UUID) -> bytes:
    """The chain of an archive that holds no record yet."""
    return sha256(_START_LABEL + log_id.bytes).digest()


def extend_chain(chain: bytes, records: Iterable[StoredRecord], *, first: int) -> bytes:
    """The chain after `records`, which begin with sequence `first`."""
    for sequence, record in enumerate(records, first):
        numbers = _NUMBERS.pack(sequence, record.position)
        chain = sha256(b"".join((_CHAIN_LABEL, chain, numbers, record.record_hash))).digest()
    return chain


# -- encoding -----------------------------------------------------------------------------


def encode_segment(
    records: Sequence[StoredRecord],
    *,
    log_id: UUID,
    generation: int,
    first: int,
    chain_before: bytes,
) -> tuple[bytes, SegmentHeader]:
    """The object's bytes and its header; the same records always give the same bytes.

    `records` are in the order of their sequence, at least one. Raises `DecodeError` for a record
    that no log has, `SegmentCorruptError` for what could not be read back.
    """
    body = b"".join(encode_body(records))
    if len(body) > MAX_BODY_BYTES or len(records) > MAX_RECORDS:
        raise corrupt("a segment to be written", f"{len(records)} records have {len(body)} bytes")
    recorded = [write_microseconds(record.recorded_at) for record in records]
    positions = [record.position for record in records]
    header = SegmentHeader(
        log_id=log_id,
        generation=generation,
        first=first,
        last=first + len(records) - 1,
        chain_before=chain_before,
        chain=extend_chain(chain_before, records, first=first),
        first_position=min(positions),
        last_position=max(positions),
        first_recorded=min(recorded),
        last_recorded=max(recorded),
        body_bytes=len(body),
        adopted=_find_adopted(records),
    )
    return encode_container(MAGIC, _write_header(header), body=compress(body)), header


def _find_adopted(records: Iterable[StoredRecord]) -> bool:
    return any(
        aggregate.startswith(ADOPTION_PREFIX)
        for record in records
        for aggregate in record.aggregates
    ) or any(is_quarantine_mark(record) for record in records)


# A limit stands in an alias, which is evaluated now: msgspec looks at annotations when it first
# decodes.
_BodyBytes: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_BODY_BYTES)]


class HeaderJson(Document, frozen=True, tag=1, tag_field="format"):
    """A segment's header, in format 1."""

    log_id: UUID = field(name="log")
    generation: Natural
    first: Positive
    last: Positive
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
    if not 1 <= header.last - header.first + 1 <= MAX_RECORDS:
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
        records = decode_body(body, what, most=header.last - header.first + 1)
        _check_claims(header, records, what)
    except (DecodeError, EntryError, OverflowError, ValueError, struct.error) as cause:
        raise corrupt(what, f"its records cannot be read: {cause}") from cause
    return Segment(header, records)


def _check_claims(header: SegmentHeader, records: Sequence[StoredRecord], what: str) -> None:
    """Hold the header to what the body has."""
    claimed = header.last - header.first + 1
    if len(records) != claimed:
        raise corrupt(what, f"it claims {claimed} records and holds {len(records)}")
    positions = [record.position for record in records]
    recorded = [write_microseconds(record.recorded_at) for record in records]
    found = (
        min(positions),
        max(positions),
        min(recorded),
        max(recorded),
        extend_chain(header.chain_before, records, first=header.first),
        _find_adopted(records),
    )
    said = (
        header.first_position,
        header.last_position,
        header.first_recorded,
        header.last_recorded,
        header.chain,
        header.adopted,
    )
    if found != said:
        raise corrupt(what, "its header does not say what its records say")
